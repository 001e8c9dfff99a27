//! The listener while the agent runs: another address takes the place of the first one.

use super::StartError;
use crate::config::Config;
use crate::web::{Shown, Web};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// `None`: nothing is served.
pub(super) type Listener = Option<Web>;

/// Changes what is listened on.
pub(super) struct Changing(mpsc::Sender<Listener>);

/// The listener of another configuration, bound; `None`: it is the same.
pub(super) struct Prepared(Option<Listener>);

/// Serves one listener after the other.
pub(super) struct Serving(mpsc::Receiver<Listener>);

pub(super) fn changing() -> (Changing, Serving) {
    let (sender, receiver) = mpsc::channel(1);
    (Changing(sender), Serving(receiver))
}

/// The listener of a configuration.
pub(super) async fn bind(config: &Config) -> Result<Listener, StartError> {
    match &config.prometheus {
        Some(prometheus) => Ok(Some(Web::bind(prometheus).await?)),
        None => Ok(None),
    }
}

impl Changing {
    /// Binds what `new` listens on, beside what `old` listens on.
    ///
    /// # Errors
    /// When the port can't be had.
    pub(super) async fn prepare(&self, old: &Config, new: &Config) -> Result<Prepared, StartError> {
        match old.prometheus == new.prometheus {
            true => Ok(Prepared(None)),
            false => Ok(Prepared(Some(bind(new).await?))),
        }
    }

    pub(super) async fn apply(&self, Prepared(listener): Prepared) {
        if let Some(listener) = listener {
            // Nobody serves any more while the agent ends.
            let _ = self.0.send(listener).await;
        }
    }
}

impl Serving {
    /// Serves `first`, and what takes its place, until `stop`. Responses under way are finished.
    pub(super) async fn run(mut self, first: Listener, shown: Shown, stop: CancellationToken) {
        let mut current = first;
        while !stop.is_cancelled() {
            let (ends, listener) = (stop.child_token(), current.take());
            let serve = async {
                match listener {
                    Some(web) => web.serve(shown.clone(), ends.clone()).await,
                    None => ends.cancelled().await,
                }
            };
            tokio::pin!(serve);
            let next = tokio::select! {
                () = &mut serve => return,
                Some(next) = self.0.recv() => next,
            };
            ends.cancel();
            serve.await;
            current = next;
        }
    }
}
