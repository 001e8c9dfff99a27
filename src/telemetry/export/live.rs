//! Which series the Collector thinks are alive.
//!
//! The readings keep the attributes of a series for as long as it is reported, so that two whole
//! collections are compared by [`Attributes::identity`]: the texts of a large fleet are only read for those
//! metrics in which something is gone.

use crate::metric::{Attributes, MetricDef, Sample};
use crate::readings::SeriesKey;
use crate::telemetry::metrics::Grouped;
use std::collections::{HashMap, HashSet};

/// The series of an export, by identity. It keeps their attributes, so no identity is used twice.
#[derive(Debug, Default)]
pub(super) struct Live {
    by_def: HashMap<&'static MetricDef, HashMap<usize, Series>>,
    collection: u64,
}

#[derive(Debug)]
struct Series {
    attributes: Attributes,
    /// The last collection that had it. So nothing has to be built anew, nor touched, for what goes on.
    collection: u64,
}

impl Live {
    /// Takes over a whole collection. Returns what was alive before and is not in it, each once.
    pub(super) fn advance(&mut self, grouped: &Grouped) -> Vec<SeriesKey> {
        self.extend(grouped);
        let mut ended = vec![];
        for (def, series) in &mut self.by_def {
            let gone = series.extract_if(|_, series| series.collection != self.collection);
            // The same series may have got another identity: another target reports it now, say.
            let mut gone: HashSet<Attributes> = gone.map(|(_, series)| series.attributes).collect();
            if !gone.is_empty() {
                for series in series.values() {
                    gone.remove(&series.attributes);
                }
            }
            ended.extend(gone.into_iter().map(|attributes| (*def, attributes)));
        }
        self.by_def.retain(|_, series| !series.is_empty());
        ended
    }

    /// Takes over a part of a collection.
    pub(super) fn extend(&mut self, grouped: &Grouped) {
        self.collection += 1;
        for (def, samples) in grouped.metrics() {
            let live = self.by_def.entry(def).or_default();
            for Sample { attributes, .. } in samples {
                let new = || Series { attributes: attributes.clone(), collection: self.collection };
                live.entry(attributes.identity()).or_insert_with(new).collection = self.collection;
            }
        }
    }

    /// Takes out what has ended. Returns those that were alive, each once.
    pub(super) fn take(&mut self, ended: Vec<SeriesKey>) -> Vec<SeriesKey> {
        let mut by_def: HashMap<_, HashSet<Attributes>> = HashMap::new();
        for (def, attributes) in ended {
            by_def.entry(def).or_default().insert(attributes);
        }
        let mut taken = HashSet::new();
        for (def, ended) in by_def {
            let Some(live) = self.by_def.get_mut(def) else { continue };
            let gone = live.extract_if(|_, series| ended.contains(&series.attributes));
            taken.extend(gone.map(|(_, series)| (def, series.attributes)));
        }
        taken.into_iter().collect()
    }

    /// Puts back what was taken.
    pub(super) fn put_back(&mut self, series: Vec<SeriesKey>) {
        for (def, attributes) in series {
            let series = Series { attributes, collection: self.collection };
            self.by_def.entry(def).or_default().insert(series.attributes.identity(), series);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::{Cadence, Kind, Unit};

    static STATE: MetricDef = MetricDef {
        name: "t.state",
        kind: Kind::Gauge,
        unit: Unit::None,
        cadence: Cadence::OnChange,
        help: "A state.",
        attributes: &["host"],
    };

    /// Built apart each time, so of an identity of its own.
    fn series(host: &str) -> SeriesKey {
        (&STATE, Attributes::new([("host", host)]))
    }

    fn collection(series: &[SeriesKey]) -> Grouped {
        Grouped::new(series.iter().map(|(def, of)| Sample::new(def, of.clone(), 1.0)))
    }

    fn live(series: &[SeriesKey]) -> Live {
        let mut live = Live::default();
        assert_eq!(live.advance(&collection(series)), [], "nothing was alive before");
        live
    }

    #[test]
    fn what_is_not_there_any_more_has_ended() {
        let (a, b, c) = (series("a"), series("b"), series("c"));
        let mut live = live(&[a.clone(), b.clone()]);
        assert_eq!(live.advance(&collection(&[b.clone(), c])), [a]);
        assert_eq!(live.advance(&collection(&[])).len(), 2);
        assert_eq!(live.advance(&collection(&[b])), []);
    }

    #[test]
    fn a_series_that_another_part_reports_now_goes_on() {
        let mut live = live(&[series("a")]);
        assert_eq!(live.advance(&collection(&[series("a")])), []);
        assert_eq!(live.advance(&collection(&[series("a"), series("a")])), []);
        assert_eq!(live.advance(&collection(&[series("a")])), [], "one of the two that reported it is left");
        assert_eq!(live.advance(&collection(&[series("a"), series("a")])), []);
        assert_eq!(live.advance(&collection(&[])), [series("a")], "once");
    }

    #[test]
    fn what_came_as_a_change_ends_with_the_next_collection_without_it() {
        let (a, b) = (series("a"), series("b"));
        let mut live = live(std::slice::from_ref(&a));
        live.extend(&collection(std::slice::from_ref(&b)));
        assert_eq!(live.advance(&collection(&[a])), [b]);
    }

    #[test]
    fn what_was_not_alive_can_not_be_taken() {
        let mut live = live(&[series("a"), series("a"), series("b")]);
        assert_eq!(live.take(vec![series("a"), series("never")]), [series("a")]);
        assert_eq!(live.take(vec![series("a")]), []);
        live.put_back(vec![series("a")]);
        assert_eq!(live.take(vec![series("a")]), [series("a")]);
    }
}
