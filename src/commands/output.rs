//! What the verbs print: a reader that has gone (`| head`) is no error, a disk that is full is one, and
//! neither is a panic, as it would be with `println!`.

use super::VerbError;
use std::fmt;
use std::io::{self, ErrorKind, Write};

/// Whether somebody still reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Reader {
    /// It was written.
    Present,
    /// The pipe is closed: there is no sense in printing more.
    Gone,
}

/// Writes `text` to standard output as it is, at once.
///
/// # Errors
/// When it can't be written, unless the reader has gone.
pub fn print(text: impl fmt::Display) -> Result<Reader, VerbError> {
    write(&mut io::stdout().lock(), &text)
}

/// Writes a line to standard error. Nobody is left to be told where that fails.
pub fn complain(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn write(out: &mut impl Write, text: &dyn fmt::Display) -> Result<Reader, VerbError> {
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Present),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(VerbError::Output(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is_one() {
        assert_eq!(write(&mut Vec::new(), &"x").unwrap(), Reader::Present);
        assert_eq!(write(&mut Broken(ErrorKind::BrokenPipe), &"x").unwrap(), Reader::Gone);
        let full = write(&mut Broken(ErrorKind::StorageFull), &"x").unwrap_err();
        assert!(full.to_string().starts_with("writing the result: "), "{full}");
    }
}
