//! Changes one by one and in their order, each with where it was seen: for whoever tells people what
//! happened. The exporter, which only wants the last word on each series, takes [`super::Changes`].

use super::same_series;
use crate::metric::{Attributes, MetricDef, Sample};
use crate::span::{self, TraceRef};
use crate::target::TargetId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use tracing::Span;

/// Most changes that wait to be heard. A site that goes down as a whole is one change a host or two.
const WAITING: usize = 65_536;

/// The join key that a vCenter's series have once it is known.
const ADDRESS: &str = "address";

/// A series that is not what it was in the report before.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// Who reported it.
    pub target: TargetId,
    /// Which metric.
    pub def: &'static MetricDef,
    /// Which series of it.
    pub attributes: Attributes,
    /// Its value before; `None`: it was not there.
    pub before: Option<f64>,
    /// Its value now; `None`: it has ended.
    pub after: Option<f64>,
    /// The visit or poll that saw it.
    pub seen_by: Option<TraceRef>,
    /// It is in the first report of its target and collector: nothing has changed.
    pub is_first: bool,
}

/// What is heard.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// A series changed.
    Changed(Transition),
    /// A target has left the inventory, and its series with it: none of them is told.
    Left(TargetId),
}

/// Whether changes of a metric are wanted; the second argument: in the first report, too.
pub type Wanted = fn(&MetricDef, bool) -> bool;

/// The listener's end.
#[derive(Debug)]
pub struct Hearing {
    news: mpsc::Receiver<News>,
    lost: Arc<AtomicU64>,
}

impl Hearing {
    /// Waits for the next piece of news; `None`: the readings are gone.
    pub async fn next(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// The next piece of news that is there already.
    pub fn try_next(&mut self) -> Option<News> {
        self.news.try_recv().ok()
    }

    /// How many changes were lost since this was last asked, since too many waited.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

/// The readings' end.
#[derive(Debug)]
pub(super) struct Listener {
    wanted: Wanted,
    news: mpsc::Sender<News>,
    lost: Arc<AtomicU64>,
}

/// Whose part it is, and what is known of the report.
pub(super) struct Seen<'a> {
    pub(super) target: &'a TargetId,
    pub(super) is_first: bool,
}

/// Whether both are about the same of the same target. That its address is known by now, or no longer, is another
/// series, and no news for people.
fn same_state(a: &Sample, b: &Sample) -> bool {
    fn others(sample: &Sample) -> impl Iterator<Item = (&str, &Arc<str>)> {
        sample.attributes.iter().filter(|(key, _)| *key != ADDRESS)
    }
    same_series(a, b) || a.def == b.def && others(a).eq(others(b))
}

impl Listener {
    pub(super) fn new(wanted: Wanted) -> (Self, Hearing) {
        let (sender, news) = mpsc::channel(WAITING);
        let lost = Arc::default();
        (Self { wanted, news: sender, lost: Arc::clone(&lost) }, Hearing { news, lost })
    }

    /// Tells what is different between two reports of one part.
    pub(super) fn compare(&self, seen: &Seen<'_>, old: &[Sample], new: &[Sample]) {
        let tell = |sample: &Sample, before, after| {
            if (self.wanted)(sample.def, seen.is_first) {
                let span = Span::current();
                if !seen.is_first {
                    span::note_change(&span);
                }
                self.send(News::Changed(Transition {
                    target: seen.target.clone(),
                    def: sample.def,
                    attributes: sample.attributes.clone(),
                    before,
                    after,
                    seen_by: TraceRef::of(&span),
                    is_first: seen.is_first,
                }));
            }
        };
        let find = |among: &[Sample], at: usize, sample: &Sample| match among.get(at) {
            Some(candidate) if same_series(candidate, sample) => Some(candidate.value),
            _ => among.iter().find(|candidate| same_state(candidate, sample)).map(|found| found.value),
        };
        for (at, sample) in old.iter().enumerate() {
            if find(new, at, sample).is_none() {
                tell(sample, Some(sample.value), None);
            }
        }
        for (at, sample) in new.iter().enumerate() {
            let before = find(old, at, sample);
            if before != Some(sample.value) {
                tell(sample, before, Some(sample.value));
            }
        }
    }

    pub(super) fn left(&self, target: &TargetId) {
        self.send(News::Left(target.clone()));
    }

    fn send(&self, news: News) {
        if self.news.try_send(news).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
