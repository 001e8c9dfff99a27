use super::*;
use bytes::Bytes;

const CAPS: Caps = Caps { bytes: 100, age: Duration::from_secs(60) };

fn batch(size: usize, points: usize) -> Batch {
    Batch { bytes: Bytes::from(vec![0; size]), points }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn push(queue: &Queue, batch: Batch, seconds: u64) -> Dropped {
    queue.push(batch, at(seconds), at(seconds))
}

fn no_room(points: usize) -> Dropped {
    Dropped { no_room: points, ..Dropped::default() }
}

fn too_old(points: usize) -> Dropped {
    Dropped { too_old: points, ..Dropped::default() }
}

/// Numbers of points, in the order in which they are sent.
fn drain(queue: &Queue) -> Vec<usize> {
    let mut order = vec![];
    while let Some((ticket, batch)) = queue.front() {
        order.push(batch.points);
        assert!(queue.acknowledge(ticket));
    }
    order
}

#[test]
fn what_was_pushed_first_leaves_first_and_only_once_it_is_acknowledged() {
    let queue = Queue::new(CAPS);
    assert_eq!(push(&queue, batch(10, 1), 1), Dropped::default());
    assert_eq!(push(&queue, batch(20, 2), 2), Dropped::default());
    let (ticket, first) = queue.front().expect("two wait");
    assert_eq!(first.points, 1);
    assert_eq!(queue.front().map(|(again, _)| again), Some(ticket));
    assert!(queue.acknowledge(ticket));
    assert!(!queue.acknowledge(ticket), "it has gone");
    let left = Load { bytes: 20, points: 2, volatile: 2, oldest: Some(at(2)), spooled: 0 };
    assert_eq!(queue.load(), left);
}

#[test]
fn above_the_cap_of_bytes_the_oldest_go_and_are_counted() {
    let queue = Queue::new(CAPS);
    assert_eq!(push(&queue, batch(60, 6), 1), Dropped::default());
    let (in_flight, _) = queue.front().expect("one waits");
    assert_eq!(push(&queue, batch(60, 7), 2), no_room(6));
    assert!(!queue.acknowledge(in_flight), "dropped while it was under way");
    assert_eq!(queue.load().points, 7);
    assert_eq!(push(&queue, batch(101, 1), 3), no_room(8), "even one that is too large by itself");
    assert_eq!(queue.load(), Load::default());
}

#[test]
fn what_is_too_old_goes_whether_or_not_something_new_comes() {
    let queue = Queue::new(CAPS);
    assert_eq!(push(&queue, batch(1, 1), 0), Dropped::default());
    assert_eq!(push(&queue, batch(1, 2), 30), Dropped::default());
    assert_eq!(queue.expire(at(60)), too_old(0));
    assert_eq!(queue.expire(at(61)), too_old(1));
    assert_eq!(push(&queue, batch(1, 4), 100), too_old(2));
}

#[test]
fn halves_stand_where_the_whole_stood() {
    let queue = Queue::new(CAPS);
    assert_eq!(push(&queue, batch(40, 4), 1), Dropped::default());
    assert_eq!(push(&queue, batch(10, 1), 2), Dropped::default());
    let (ticket, _) = queue.front().expect("waits");
    assert!(queue.replace(ticket, [batch(20, 3), batch(20, 2)]));
    assert_eq!((queue.load().bytes, queue.load().oldest), (50, Some(at(1))));
    assert_eq!(drain(&queue), [3, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken() {
    let queue = std::sync::Arc::new(Queue::new(CAPS));
    let waiting = tokio::spawn({
        let queue = std::sync::Arc::clone(&queue);
        async move { queue.wait_front().await.0 }
    });
    tokio::task::yield_now().await;
    assert_eq!(push(&queue, batch(1, 1), 1), Dropped::default());
    let ticket = waiting.await.expect("no panic");
    queue.acknowledge(ticket);
    tokio::time::timeout(Duration::from_secs(1), queue.wait_empty()).await.expect("empty");
}

const SOON: Duration = Duration::ZERO;

fn on_disk(points: usize) -> OnDisk {
    OnDisk { has_unread: points > 0, points, oldest: Some(at(1)), bytes: 7 }
}

#[test]
fn nothing_is_sent_before_it_is_known_what_waits_on_the_disk() {
    let queue = Queue::new(CAPS);
    queue.wait_for_disk();
    assert_eq!(push(&queue, batch(1, 1), 9), Dropped::default());
    assert_eq!(queue.front(), None);
    queue.attach(on_disk(5));
    assert_eq!(queue.front(), None, "what is on the disk goes first");
    assert_eq!(queue.load(), Load { bytes: 1, spooled: 7, points: 6, volatile: 1, oldest: Some(at(1)) });
    queue.loaded(vec![Kept { sequence: 4, batch: batch(2, 5), collected: at(1) }], on_disk(0));
    assert_eq!(queue.ahead(), (2, Some(4)));
    assert_eq!(drain(&queue), [5, 1]);
}

#[test]
fn a_disk_that_can_not_be_used_keeps_nothing_back() {
    let queue = Queue::new(CAPS);
    queue.wait_for_disk();
    assert_eq!(push(&queue, batch(1, 1), 1), Dropped::default());
    queue.go_without_disk();
    assert_eq!(drain(&queue), [1]);
}

#[test]
fn what_was_written_goes_on_from_memory_when_nothing_is_before_it() {
    let queue = Queue::new(CAPS);
    queue.attach(on_disk(0));
    assert_eq!(push(&queue, batch(10, 1), 1), Dropped::default());
    assert_eq!(push(&queue, batch(10, 2), 2), Dropped::default());
    assert_eq!(queue.to_write(5, SOON, false).len(), 1, "about so many bytes");
    assert_eq!(queue.to_write(50, Duration::from_secs(60), false).len(), 0, "they may be sent at once");
    assert_eq!(queue.to_write(50, Duration::from_secs(60), true).len(), 2, "at the end they may not wait");
    queue.written(Some(7), true, on_disk(0));
    assert_eq!(queue.ahead(), (20, Some(7)));
    assert_eq!(queue.load().volatile, 0);
    assert_eq!(drain(&queue), [1, 2]);
}

#[test]
fn what_was_sent_or_split_while_it_was_written_is_not_sent_again() {
    let queue = Queue::new(CAPS);
    queue.attach(on_disk(0));
    for (points, seconds) in [(1, 1), (2, 2), (3, 3)] {
        assert_eq!(push(&queue, batch(10, points), seconds), Dropped::default());
    }
    assert_eq!(queue.to_write(100, SOON, false).len(), 3);
    let (sent, _) = queue.front().expect("the first");
    assert!(queue.acknowledge(sent));
    let (split, _) = queue.front().expect("the second");
    assert!(queue.replace(split, [batch(5, 10), batch(5, 20)]));
    queue.written(Some(1), true, on_disk(0));
    assert_eq!(queue.ahead(), (20, Some(2)), "both parts are the second one");
    assert_eq!(drain(&queue), [10, 20, 3]);
}

#[test]
fn what_is_being_written_is_not_dropped_for_want_of_room() {
    let queue = Queue::new(CAPS);
    queue.attach(on_disk(0));
    assert_eq!(push(&queue, batch(60, 1), 1), Dropped::default());
    assert_eq!(queue.to_write(100, SOON, false).len(), 1);
    assert_eq!(push(&queue, batch(30, 2), 2), Dropped::default());
    assert_eq!(push(&queue, batch(30, 3), 3), no_room(2));
    queue.written(None, true, on_disk(0));
    assert_eq!(push(&queue, batch(30, 4), 4), no_room(1), "it could not be written");
    assert_eq!(drain(&queue), [3, 4]);
}
