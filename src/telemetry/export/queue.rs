//! What waits to be sent, oldest first. In memory; whoever keeps it on disk one day has these operations
//! to offer: push, front, acknowledge, replace.
//!
//! Both caps drop the oldest first: what is new is worth more, and receivers refuse what is out of order.

use super::encode::Batch;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// Most bytes, as encoded.
    pub bytes: usize,
    /// Longest time since the collection.
    pub age: Duration,
}

/// Which entry, for [`Queue::acknowledge`]: it may have been dropped meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// How much waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Bytes, as encoded.
    pub bytes: usize,
    /// Points.
    pub points: usize,
    /// When the oldest was collected.
    pub oldest: Option<SystemTime>,
}

#[derive(Debug)]
struct Entry {
    ticket: Ticket,
    batch: Batch,
    collected: SystemTime,
}

/// The queue. One sends, one collects.
#[derive(Debug)]
pub struct Queue {
    caps: Caps,
    inner: Mutex<Inner>,
    pushed: Notify,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    entries: VecDeque<Entry>,
    bytes: usize,
    next: u64,
}

impl Queue {
    /// An empty one.
    pub fn new(caps: Caps) -> Self {
        Self { caps, inner: Mutex::default(), pushed: Notify::new(), emptied: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a batch behind all others. Returns the number of points that had to go for it, or by age.
    pub fn push(&self, batch: Batch, collected: SystemTime, now: SystemTime) -> usize {
        let mut inner = self.lock();
        inner.bytes += batch.bytes.len();
        let ticket = inner.ticket();
        inner.entries.push_back(Entry { ticket, batch, collected });
        let mut dropped = inner.drop_aged(self.caps.age, now);
        while inner.bytes > self.caps.bytes {
            match inner.pop_front() {
                Some(points) => dropped += points,
                None => break,
            }
        }
        self.tell(&inner);
        dropped
    }

    /// Drops what is too old. Returns the number of points.
    pub fn expire(&self, now: SystemTime) -> usize {
        let mut inner = self.lock();
        let dropped = inner.drop_aged(self.caps.age, now);
        self.tell(&inner);
        dropped
    }

    /// The oldest entry, which stays until it is acknowledged.
    pub fn front(&self) -> Option<(Ticket, Batch)> {
        self.lock().entries.front().map(|entry| (entry.ticket, entry.batch.clone()))
    }

    /// Waits for an oldest entry. For one waiter: the sender.
    pub async fn wait_front(&self) -> (Ticket, Batch) {
        loop {
            let pushed = self.pushed.notified();
            if let Some(front) = self.front() {
                return front;
            }
            pushed.await;
        }
    }

    /// Waits until nothing waits. For one waiter: the exporter.
    pub async fn wait_empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.lock().entries.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Takes an entry out. Returns whether it was still there.
    pub fn acknowledge(&self, ticket: Ticket) -> bool {
        self.replace(ticket, [])
    }

    /// Puts others at the place of the oldest entry. Returns whether it was still there.
    pub fn replace(
        &self,
        ticket: Ticket,
        batches: impl IntoIterator<Item = Batch, IntoIter: DoubleEndedIterator>,
    ) -> bool {
        let mut inner = self.lock();
        if inner.entries.front().is_none_or(|front| front.ticket != ticket) {
            return false;
        }
        let collected = inner.entries.front().map_or(SystemTime::UNIX_EPOCH, |front| front.collected);
        inner.pop_front();
        for batch in batches.into_iter().rev() {
            let ticket = inner.ticket();
            inner.bytes += batch.bytes.len();
            inner.entries.push_front(Entry { ticket, batch, collected });
        }
        self.tell(&inner);
        true
    }

    /// How much waits.
    pub fn load(&self) -> Load {
        let inner = self.lock();
        Load {
            bytes: inner.bytes,
            points: inner.entries.iter().map(|entry| entry.batch.points).sum(),
            oldest: inner.entries.front().map(|entry| entry.collected),
        }
    }

    fn tell(&self, inner: &Inner) {
        if inner.entries.is_empty() {
            self.emptied.notify_one();
        } else {
            self.pushed.notify_one();
        }
    }
}

impl Inner {
    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }

    fn pop_front(&mut self) -> Option<usize> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.batch.bytes.len();
        Some(entry.batch.points)
    }

    fn drop_aged(&mut self, age: Duration, now: SystemTime) -> usize {
        let mut dropped = 0;
        // A clock that was set back makes nothing old.
        let is_old = |entry: &Entry| now.duration_since(entry.collected).is_ok_and(|since| since > age);
        while self.entries.front().is_some_and(is_old) {
            dropped += self.pop_front().unwrap_or(0);
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const CAPS: Caps = Caps { bytes: 100, age: Duration::from_secs(60) };

    fn batch(size: usize, points: usize) -> Batch {
        Batch { bytes: Bytes::from(vec![0; size]), points }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_was_pushed_first_leaves_first_and_only_once_it_is_acknowledged() {
        let queue = Queue::new(CAPS);
        queue.push(batch(10, 1), at(1), at(1));
        queue.push(batch(20, 2), at(2), at(2));
        let (ticket, first) = queue.front().expect("two wait");
        assert_eq!(first.points, 1);
        assert_eq!(queue.front().map(|(again, _)| again), Some(ticket));
        assert!(queue.acknowledge(ticket));
        assert!(!queue.acknowledge(ticket), "it has gone");
        assert_eq!(queue.load(), Load { bytes: 20, points: 2, oldest: Some(at(2)) });
    }

    #[test]
    fn above_the_cap_of_bytes_the_oldest_go_and_are_counted() {
        let queue = Queue::new(CAPS);
        assert_eq!(queue.push(batch(60, 6), at(1), at(1)), 0);
        let (in_flight, _) = queue.front().expect("one waits");
        assert_eq!(queue.push(batch(60, 7), at(2), at(2)), 6);
        assert!(!queue.acknowledge(in_flight), "dropped while it was under way");
        assert_eq!(queue.load().points, 7);
        assert_eq!(queue.push(batch(101, 1), at(3), at(3)), 8, "even one that is too large by itself");
        assert_eq!(queue.load(), Load { bytes: 0, points: 0, oldest: None });
    }

    #[test]
    fn what_is_too_old_goes_whether_or_not_something_new_comes() {
        let queue = Queue::new(CAPS);
        queue.push(batch(1, 1), at(0), at(0));
        queue.push(batch(1, 2), at(30), at(30));
        assert_eq!(queue.expire(at(60)), 0);
        assert_eq!(queue.expire(at(61)), 1);
        assert_eq!(queue.push(batch(1, 4), at(100), at(100)), 2);
    }

    #[test]
    fn halves_stand_where_the_whole_stood() {
        let queue = Queue::new(CAPS);
        queue.push(batch(40, 4), at(1), at(1));
        queue.push(batch(10, 1), at(2), at(2));
        let (ticket, _) = queue.front().expect("waits");
        assert!(queue.replace(ticket, [batch(20, 3), batch(20, 2)]));
        let mut order = vec![];
        while let Some((ticket, batch)) = queue.front() {
            order.push((batch.points, queue.load().oldest));
            queue.acknowledge(ticket);
        }
        assert_eq!(order, [(3, Some(at(1))), (2, Some(at(1))), (1, Some(at(2)))]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_woken() {
        let queue = std::sync::Arc::new(Queue::new(CAPS));
        let waiting = tokio::spawn({
            let queue = std::sync::Arc::clone(&queue);
            async move { queue.wait_front().await.0 }
        });
        tokio::task::yield_now().await;
        queue.push(batch(1, 1), at(1), at(1));
        let ticket = waiting.await.expect("no panic");
        queue.acknowledge(ticket);
        tokio::time::timeout(Duration::from_secs(1), queue.wait_empty()).await.expect("empty");
    }
}
