//! One call with its answer read: what came of it, or why nothing did.

use super::property::Query;
use super::soap::{Fault, FaultKind, Method, NoResult};
use super::transport::{Answer, ReadAnswer, Stage, Transport};
use crate::outcome::{Failure, FailureReason};
use tokio::time::Instant;
use zeroize::Zeroizing;

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{failure}")]
pub struct VimError {
    /// For metric, span and log.
    pub failure: Failure,
    /// The fault that the server answered with, if it did.
    pub fault: Option<Fault>,
}

impl VimError {
    /// Whether the session is gone. After a restart of the server its objects are, which is told first.
    pub fn session_is_gone(&self) -> bool {
        let kind = self.fault.as_ref().map(|fault| &fault.kind);
        matches!(kind, Some(FaultKind::NotAuthenticated | FaultKind::ManagedObjectNotFound))
    }

    /// Whether an object that `query` names does not exist (any more).
    pub fn is_about_an_object_of(&self, query: &Query<'_>) -> bool {
        let fault = self.fault.as_ref().filter(|fault| fault.kind == FaultKind::ManagedObjectNotFound);
        fault.and_then(|fault| fault.subject.as_deref()).is_some_and(|subject| query.names(subject))
    }
}

impl From<VimError> for Failure {
    fn from(error: VimError) -> Self {
        error.failure
    }
}

impl From<Failure> for VimError {
    fn from(failure: Failure) -> Self {
        Self { failure, fault: None }
    }
}

impl Transport {
    /// Asks, and reads the answer. What does no harm is asked once more when a kept connection turns out to
    /// be closed. `page` and `deadline` as in [`Transport::call`].
    ///
    /// # Errors
    /// When there was no answer, it was a fault, or `reader` can't make sense of it.
    pub async fn ask<R: ReadAnswer + Send>(
        &self,
        method: Method,
        request: Zeroizing<String>,
        page: Option<u32>,
        deadline: Option<Instant>,
        mut reader: R,
    ) -> Result<R::Output, VimError> {
        let again = method.is_repeatable().then(|| request.clone());
        let mut take = |more: &[u8]| reader.take(more);
        let answer = match (self.call(method, request, page, deadline, &mut take).await, again) {
            // No answer has begun, so nothing was read yet.
            (Err(error), Some(request))
                if error.stage == Stage::Asking && error.failure.reason == FailureReason::ConnectionLost =>
            {
                self.call(method, request, page, deadline, &mut take).await
            }
            (result, _) => result,
        };
        let answer = answer.map_err(|error| VimError::from(error.failure))?;
        let result = reader.finish().map_err(|problem| explain(self, method, problem));
        conclude(self, method, answer, result.as_ref().err());
        result
    }
}

/// Reads an answer when all of it is there: most are short.
pub(super) struct Whole<F> {
    body: Vec<u8>,
    read: F,
}

impl<F> Whole<F> {
    /// By this function.
    pub(super) fn by(read: F) -> Self {
        Self { body: Vec::new(), read }
    }
}

impl<T, F: FnOnce(&[u8]) -> Result<T, NoResult>> ReadAnswer for Whole<F> {
    type Output = T;

    fn take(&mut self, more: &[u8]) {
        self.body.extend_from_slice(more);
    }

    fn finish(self) -> Result<T, NoResult> {
        (self.read)(&self.body)
    }
}

/// Why a call came to nothing, although it was answered.
pub(super) fn explain(transport: &Transport, method: Method, problem: NoResult) -> VimError {
    match problem {
        NoResult::Fault(fault) => faulted(transport, method, fault),
        NoResult::Unreadable(unreadable) => {
            let line = format!("{} of vCenter {}: {unreadable}", method.name(), transport.vcenter());
            Failure::new(FailureReason::AnswerUnreadable, line).into()
        }
    }
}

pub(super) fn faulted(transport: &Transport, method: Method, fault: Fault) -> VimError {
    let (reason, hint) = match fault.kind {
        FaultKind::InvalidLogin => {
            (FailureReason::AuthFailed, ": wrong user or password, or account locked or expired")
        }
        FaultKind::NoPermission => (FailureReason::PermissionDenied, ": the account lacks a privilege"),
        _ => (FailureReason::CommandFailed, ""),
    };
    let line = format!("{} of vCenter {}: {fault}{hint}", method.name(), transport.vcenter());
    VimError { failure: Failure::new(reason, line), fault: Some(fault) }
}

pub(super) fn conclude(transport: &Transport, method: Method, answer: Answer, error: Option<&VimError>) {
    let problem = error.map(|error| {
        let outcome = match &error.fault {
            Some(fault) => {
                answer.span.record("vim.fault", fault.kind.name());
                "fault"
            }
            None => error.failure.reason.word(),
        };
        (outcome, &error.failure)
    });
    transport.conclude(method, answer, problem);
}
