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
    by_def: HashMap<&'static MetricDef, HashMap<usize, Attributes>>,
}

impl Live {
    /// All of a collection.
    pub(super) fn of(grouped: &Grouped) -> Self {
        let entry = |sample: &Sample| (sample.attributes.identity(), sample.attributes.clone());
        let by_def = grouped.metrics().map(|(def, samples)| (def, samples.iter().map(entry).collect()));
        Self { by_def: by_def.collect() }
    }

    /// Those of another collection, too.
    pub(super) fn extend(&mut self, other: Self) {
        for (def, series) in other.by_def {
            self.by_def.entry(def).or_default().extend(series);
        }
    }

    /// What is alive here and not in `later`, each once.
    pub(super) fn ended_in(&self, later: &Self) -> Vec<SeriesKey> {
        let mut ended = vec![];
        let none = HashMap::new();
        for (def, before) in &self.by_def {
            let after = later.by_def.get(def).unwrap_or(&none);
            let gone = before.iter().filter(|(identity, _)| !after.contains_key(identity));
            // The same series may have got another identity: another target reports it now, say.
            let mut gone: HashSet<&Attributes> = gone.map(|(_, attributes)| attributes).collect();
            if !gone.is_empty() {
                for attributes in after.values() {
                    gone.remove(attributes);
                }
            }
            ended.extend(gone.into_iter().map(|attributes| (*def, attributes.clone())));
        }
        ended
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
            live.retain(|_, attributes| {
                let has_ended = ended.contains(attributes);
                if has_ended {
                    taken.insert((def, attributes.clone()));
                }
                !has_ended
            });
        }
        taken.into_iter().collect()
    }

    /// Puts back what was taken.
    pub(super) fn put_back(&mut self, series: Vec<SeriesKey>) {
        for (def, attributes) in series {
            self.by_def.entry(def).or_default().insert(attributes.identity(), attributes);
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

    fn live(series: &[SeriesKey]) -> Live {
        Live::of(&Grouped::new(series.iter().map(|(def, of)| Sample::new(def, of.clone(), 1.0))))
    }

    #[test]
    fn what_is_not_there_any_more_has_ended() {
        let (a, b, c) = (series("a"), series("b"), series("c"));
        let before = live(&[a.clone(), b.clone()]);
        assert_eq!(before.ended_in(&live(&[b.clone(), c])), [a]);
        assert_eq!(before.ended_in(&Live::default()).len(), 2);
        assert_eq!(Live::default().ended_in(&before), []);
    }

    #[test]
    fn a_series_that_another_part_reports_now_goes_on() {
        assert_eq!(live(&[series("a")]).ended_in(&live(&[series("a")])), []);
        let reported_twice = live(&[series("a"), series("a")]);
        assert_eq!(reported_twice.ended_in(&live(&[series("a")])), []);
        assert_eq!(reported_twice.ended_in(&Live::default()), [series("a")], "once");
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
