//! What is set anew while the agent runs: options, and where everything goes.

use futures::FutureExt as _;
use tokio::sync::watch;

/// Waits for another value; for ever when nobody can give one any more.
pub(super) async fn changed<T>(of: &mut watch::Receiver<T>) {
    if of.changed().await.is_err() {
        std::future::pending().await
    }
}

/// The value, if it is another one than was last seen; also when nobody can give one any more.
pub(in crate::telemetry) fn renewed<T: Clone>(of: &mut watch::Receiver<T>) -> Option<T> {
    // Not `has_changed`: that hides the last value once the channel is closed, and whoever waits with `changed` is
    // woken by it for ever.
    let is_new = matches!(of.changed().now_or_never(), Some(Ok(())));
    is_new.then(|| of.borrow_and_update().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_is_seen_once_even_after_its_sender_has_gone() {
        let (sender, mut receiver) = watch::channel(1);
        assert_eq!(renewed(&mut receiver), None);
        sender.send_replace(2);
        drop(sender);
        assert_eq!(renewed(&mut receiver), Some(2));
        assert_eq!(renewed(&mut receiver), None);
        assert_eq!(changed(&mut receiver).now_or_never(), None);
    }
}
