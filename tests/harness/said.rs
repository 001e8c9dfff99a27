//! What is logged, for stories about what people are told.

use std::sync::{Arc, Mutex};

/// Collects warnings and infos as plain lines.
#[derive(Clone, Default)]
pub struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    /// Line by line.
    pub fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl From<Said> for tracing::Dispatch {
    fn from(said: Said) -> Self {
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || said.clone())
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_level(false)
            .with_target(false)
            .without_time();
        subscriber.finish().into()
    }
}
