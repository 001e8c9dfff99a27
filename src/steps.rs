//! Leaf: the steps on the way to a target, for whoever reports them one by one.

use crate::outcome::Failure;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Takes down steps and facts, if somebody wants to know; else it costs nothing. Clones share one record.
#[derive(Debug, Clone, Default)]
pub struct Steps(Option<Arc<Mutex<Taken>>>);

/// What was taken down so far.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// In their order.
    pub steps: Vec<Step>,
    /// What was learned, by its name.
    pub facts: BTreeMap<&'static str, String>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Such as `tcp`.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
    /// Why it failed, if it did. Nothing that needs it comes after it.
    pub failure: Option<Failure>,
}

impl Steps {
    /// A new record.
    pub fn wanted() -> Self {
        Self(Some(Arc::default()))
    }

    /// Whether anybody wants to know.
    pub fn are_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Does `work` and takes it down as a step.
    pub async fn timed<T, E>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E>
    where
        E: Clone + Into<Failure>,
    {
        let started = Instant::now();
        let result = work.await;
        if self.0.is_some() {
            let failure = result.as_ref().err().cloned().map(Into::into);
            self.add(|taken| taken.steps.push(Step { name, took: started.elapsed(), failure }));
        }
        result
    }

    /// Takes down a fact; a later one of the same name takes its place.
    pub fn fact(&self, name: &'static str, value: impl Into<String>) {
        self.add(|taken| drop(taken.facts.insert(name, value.into())));
    }

    /// What was taken down so far.
    pub fn taken(&self) -> Taken {
        let Some(taken) = &self.0 else { return Taken::default() };
        taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, change: impl FnOnce(&mut Taken)) {
        if let Some(taken) = &self.0 {
            change(&mut taken.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::FailureReason;

    #[tokio::test(start_paused = true)]
    async fn steps_are_taken_down_with_their_times_and_ends() {
        let steps = Steps::wanted();
        let quick = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok::<_, Failure>(1)
        };
        assert_eq!(steps.clone().timed("tcp", quick).await, Ok(1));
        let failure = Failure::new(FailureReason::AuthFailed, "rejected");
        steps.timed("login", async { Err::<(), _>(failure.clone()) }).await.unwrap_err();
        steps.fact("method", "a");
        steps.fact("method", "b");
        let taken = steps.taken();
        let tcp = Step { name: "tcp", took: Duration::from_millis(5), failure: None };
        let login = Step { name: "login", took: Duration::ZERO, failure: Some(failure) };
        assert_eq!(taken.steps, [tcp, login]);
        assert_eq!(taken.facts["method"], "b");
    }

    #[tokio::test]
    async fn nothing_is_taken_down_where_nobody_wants_to_know() {
        let steps = Steps::default();
        steps.timed("tcp", async { Ok::<_, Failure>(()) }).await.unwrap();
        assert!(steps.taken().steps.is_empty());
    }
}
