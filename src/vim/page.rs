//! Reads a page of objects while it comes, so that neither it nor the text of what was read already is held.
//!
//! What has come is read up to its last whole object, and dropped. The rest waits for more, with the start tags
//! that are open there before it, so that it is a document like any other, by the rules of [`super::xml`].

use super::model::Interner;
use super::property::{Page, read_part};
use super::soap::{Method, NoResult};
use super::transport::ReadAnswer;
use super::xml::Cursor;

/// So many bytes are read at once. A host is 1.5 KB with all that a poll asks for; what is cut off at the end is
/// read twice.
const PIECE: usize = 128 * 1024;

/// How far a part of an answer was read: up to the last whole object.
#[derive(Debug)]
pub(super) struct Progress {
    is_wanted: bool,
    /// Bytes of it.
    position: u64,
    /// Objects up to there, all parts together.
    objects: usize,
    /// The start tags that are open there.
    opened: String,
}

impl Progress {
    /// Of what is read to its end anyway.
    pub fn none() -> Self {
        Self { is_wanted: false, position: 0, objects: 0, opened: String::new() }
    }

    fn wanted(objects: usize) -> Self {
        Self { is_wanted: true, objects, ..Self::none() }
    }

    /// An object has ended, with which there are so many.
    pub fn reached(&mut self, cursor: &Cursor<'_>, objects: usize) {
        let Some(tags) = cursor.opened().filter(|_| self.is_wanted) else { return };
        self.opened.clear();
        self.opened.extend(tags.iter().flat_map(|tag| ["<", tag, ">"]));
        (self.position, self.objects) = (cursor.position(), objects);
    }
}

/// A page that is coming.
#[derive(Debug)]
pub(super) struct PageReader<'a> {
    method: Method,
    strings: &'a mut Interner,
    page: Page,
    /// The start tags that are open, and what has come and was not read.
    rest: Vec<u8>,
    /// Bytes of these tags.
    repeated: usize,
    /// Bytes that were read and dropped.
    dropped: u64,
    /// It is read when there is so much of it.
    enough: usize,
}

impl<'a> PageReader<'a> {
    /// The answer to `method`, of which nothing has come yet.
    pub fn new(method: Method, strings: &'a mut Interner) -> Self {
        Self {
            method,
            strings,
            page: Page::default(),
            rest: Vec::new(),
            repeated: 0,
            dropped: 0,
            enough: PIECE,
        }
    }

    /// Reads what is whole. What is wrong with the rest shows at the end: to be cut off is no mistake yet.
    fn read_whole_objects(&mut self) {
        let text = match std::str::from_utf8(&self.rest) {
            Ok(text) => text.as_bytes(),
            Err(error) => self.rest.get(..error.valid_up_to()).unwrap_or_default(),
        };
        let mut progress = Progress::wanted(self.page.objects.len());
        let _ = read_part(self.method, text, self.strings, &mut self.page, &mut progress);
        self.page.objects.truncate(progress.objects);
        let read = usize::try_from(progress.position).unwrap_or(0);
        if let Some(rest) = self.rest.get(read..).filter(|_| read > self.repeated) {
            let mut next = progress.opened.into_bytes();
            let repeated = std::mem::replace(&mut self.repeated, next.len());
            self.dropped += (read - repeated) as u64;
            next.extend_from_slice(rest);
            self.rest.clear();
            self.rest.append(&mut next);
        }
        // Where there was nothing to read, twice as much is worth another look: it is read twice at the most.
        self.enough = PIECE.max(2 * self.rest.len());
    }
}

impl ReadAnswer for PageReader<'_> {
    type Output = Page;

    fn take(&mut self, more: &[u8]) {
        self.rest.extend_from_slice(more);
        if self.rest.len() >= self.enough {
            self.read_whole_objects();
        }
    }

    fn finish(mut self) -> Result<Page, NoResult> {
        let result = read_part(self.method, &self.rest, self.strings, &mut self.page, &mut Progress::none());
        let in_whole = |problem| match problem {
            NoResult::Unreadable(unreadable) => {
                NoResult::Unreadable(unreadable.in_whole(self.dropped, self.repeated as u64))
            }
            fault => fault,
        };
        result.map(|()| std::mem::take(&mut self.page)).map_err(in_whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vim::model::Value;
    use crate::vim::property::read_page;
    use proptest::prelude::*;

    const EX: Method = Method::RetrievePropertiesEx;
    const OLD: Method = Method::RetrieveProperties;

    /// An answer about hosts whose names need more than one byte a character, with a token among them.
    fn answer(method: Method, hosts: usize) -> String {
        let host = |number: usize| {
            format!(
                "<o:obj type=\"HostSystem\">host-{number}</o:obj><o:propSet><o:name>name</o:name>\
                 <o:val x:type=\"s:string\">esx{number}.zürich&lt;</o:val></o:propSet><!-- </o:objects> -->"
            )
        };
        let hosts = (0..hosts).map(host);
        let (name, result): (_, String) = match method {
            OLD => (
                "RetrieveProperties",
                hosts.map(|host| format!("<o:returnval>{host}</o:returnval>")).collect(),
            ),
            _ => {
                let objects: String = hosts.map(|host| format!("<o:objects>{host}</o:objects>\n")).collect();
                ("RetrievePropertiesEx", format!("<o:returnval><o:token>0</o:token>{objects}</o:returnval>"))
            }
        };
        format!(
            "<?xml version=\"1.0\"?><e:Envelope xmlns:e=\"{}\" xmlns:x=\"{}\" xmlns:s=\"{}\">\
             <e:Header><e:a/></e:Header><e:Body><o:{name}Response xmlns:o=\"urn:vim25\">{result}</o:{name}Response>\
             </e:Body></e:Envelope>\n",
            crate::vim::xml::SOAP,
            crate::vim::xml::XSI,
            crate::vim::xml::XSD,
        )
    }

    /// Reads in pieces of such a size as they come from a connection; each is looked at.
    fn in_pieces(method: Method, body: &[u8], size: usize) -> Result<Page, NoResult> {
        let mut strings = Interner::default();
        let mut reader = PageReader::new(method, &mut strings);
        for piece in body.chunks(size) {
            reader.enough = 0;
            reader.take(piece);
        }
        reader.finish()
    }

    #[test]
    fn it_does_not_matter_how_an_answer_is_cut_into_pieces() {
        for method in [EX, OLD] {
            let answer = answer(method, 5);
            let whole = read_page(method, answer.as_bytes(), &mut Interner::default()).unwrap();
            assert_eq!(whole.objects.len(), 5);
            assert_eq!(whole.objects[4].get("name"), Some(&Value::Text("esx4.zürich<".into())));
            for size in 1..=answer.len() {
                assert_eq!(in_pieces(method, answer.as_bytes(), size).as_ref(), Ok(&whole), "{size}");
            }
        }
    }

    #[test]
    fn what_is_cut_off_gives_nothing_and_says_where() {
        let answer = answer(EX, 5);
        let end = answer.find("</e:Envelope>").unwrap();
        for cut in 0..end {
            let by_pieces = in_pieces(EX, &answer.as_bytes()[..cut], 97);
            let at_once = read_page(EX, &answer.as_bytes()[..cut], &mut Interner::default());
            assert!(matches!(by_pieces, Err(NoResult::Unreadable(_))), "{cut}: {by_pieces:?}");
            // Where a character is cut the place is that of the character, not of the text before it.
            if answer.is_char_boundary(cut) {
                assert_eq!(by_pieces, at_once, "{cut}");
            }
        }
    }

    #[test]
    fn of_a_large_answer_no_more_than_two_pieces_are_held() {
        let answer = answer(EX, 5_000);
        let mut strings = Interner::default();
        let mut reader = PageReader::new(EX, &mut strings);
        for piece in answer.as_bytes().chunks(16 * 1024) {
            reader.take(piece);
            assert!(reader.rest.len() < PIECE + 16 * 1024, "{}", reader.rest.len());
        }
        assert!(answer.len() > 4 * PIECE && reader.rest.capacity() <= 2 * PIECE + 32 * 1024);
        assert_eq!(reader.finish().unwrap().objects.len(), 5_000);
    }

    proptest! {
        #[test]
        fn a_byte_that_changed_is_read_alike_in_pieces(at in 0usize..1500, to in any::<u8>(), size in 1usize..300) {
            let mut bytes = answer(EX, 5).into_bytes();
            let at = at % bytes.len();
            bytes[at] = to;
            let at_once = read_page(EX, &bytes, &mut Interner::default());
            let by_pieces = in_pieces(EX, &bytes, size);
            match (at_once, by_pieces) {
                (Err(NoResult::Unreadable(_)), Err(NoResult::Unreadable(_))) => {}
                (at_once, by_pieces) => prop_assert_eq!(at_once, by_pieces),
            }
        }
    }
}
