//! What is wrong with a configuration, all of it at once, and where each setting came from.

use std::fmt;
use std::sync::Arc;

/// Where a setting came from. In the order of precedence: a flag wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command line, `--listen`.
    Flag(String),
    /// A variable of the environment.
    Environment(String),
    /// The configuration file.
    File {
        /// The file, as it was named.
        name: Arc<str>,
        /// Line and column, from 1; `None`: the file as a whole.
        place: Option<(usize, usize)>,
    },
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) | Origin::Environment(name) => f.write_str(name),
            Origin::File { name, place: Some((line, column)) } => write!(f, "{name}:{line}:{column}"),
            Origin::File { name, place: None } => f.write_str(name),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// A setting, for `check`: what it is, and who said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingOrigin {
    /// Key path, `ssh.timeouts.connect`.
    pub key: String,
    /// Its value, as a file would have it; `***` for a secret.
    pub value: String,
    /// Who said so.
    pub origin: Origin,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Who said it; [`Origin::Default`]: nobody, something is missing.
    pub origin: Origin,
    /// Key path; empty where no single key is to blame.
    pub key: String,
    /// What was found, and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            // A flag or variable is a name in itself.
            Origin::Flag(name) | Origin::Environment(name) => write!(f, "{name}: ")?,
            Origin::File { .. } if self.key.is_empty() => write!(f, "{}: ", self.origin)?,
            Origin::File { .. } => write!(f, "{}: {}: ", self.origin, self.key)?,
            Origin::Default if self.key.is_empty() => {}
            Origin::Default => write!(f, "{}: ", self.key)?,
        }
        f.write_str(&self.message)
    }
}

/// The configuration can't be used. Its text is one line for each problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(Vec<Problem>);

impl ConfigError {
    /// Of problems in the order in which they are to be told.
    pub(super) fn new(problems: Vec<Problem>) -> Self {
        Self(problems)
    }

    /// The problems: those of flags, of the environment, of the file from top to bottom, and what is
    /// missing.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
