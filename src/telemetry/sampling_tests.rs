use super::*;
use crate::telemetry::taken::Taken;
use opentelemetry::trace::{SpanBuilder, TraceContextExt, Tracer, TracerProvider};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SimpleSpanProcessor};
use std::time::SystemTime;

struct Traced {
    tracer: SdkTracer,
    exported: Taken,
    stats: Arc<Stats>,
    _provider: SdkTracerProvider,
}

fn traced(ratio: f64, caps: Caps) -> Traced {
    let keep = TracesConfig { slower_than: Duration::from_secs(5), errors: true, ratio };
    let exported = Taken::default();
    let stats = Stats::new();
    let next = SimpleSpanProcessor::new(exported.clone());
    let keep = watch::channel(keep).1;
    let sampler = TailSampler::new(next, keep, caps, Arc::clone(&stats));
    let provider = SdkTracerProvider::builder().with_span_processor(sampler).build();
    Traced { tracer: provider.tracer("t"), exported, stats, _provider: provider }
}

impl Traced {
    /// A root that takes this long; below it a child with this status.
    fn visit(&self, name: &'static str, took: Duration, child: Status) {
        let start = SystemTime::now();
        let root = self.tracer.build(SpanBuilder::from_name(name).with_start_time(start));
        let cx = Context::new().with_span(root);
        let mut span = self.tracer.build_with_context(SpanBuilder::from_name("child"), &cx);
        opentelemetry::trace::Span::set_status(&mut span, child);
        drop(span);
        cx.span().end_with_timestamp(start + took);
    }

    fn exported(&self) -> Vec<String> {
        self.exported.names()
    }

    fn counted(&self, outcome: &str) -> f64 {
        let of = |s: &&crate::metric::Sample| s.attributes.get("outcome") == Some(outcome);
        self.stats.samples().iter().find(of).map_or(0.0, |s| s.value)
    }
}

const QUICK: Duration = Duration::from_millis(10);

#[test]
fn failed_and_slow_traces_are_kept_whole_and_the_rest_is_not() {
    let traced = traced(0.0, Caps::default());
    traced.visit("quick", QUICK, Status::Unset);
    traced.visit("failed", QUICK, Status::error("no"));
    traced.visit("slow", Duration::from_secs(6), Status::Unset);
    assert_eq!(traced.exported(), ["child", "failed", "child", "slow"]);
    assert_eq!(traced.counted("sampled_out"), 2.0);
}

#[test]
fn a_share_of_the_rest_is_kept() {
    let traced = traced(0.25, Caps::default());
    for _ in 0..2_000 {
        traced.visit("quick", QUICK, Status::Unset);
    }
    let roots = traced.exported().iter().filter(|name| *name == "quick").count();
    assert!((400..600).contains(&roots), "{roots} of 2,000");
    let all = self::traced(1.0, Caps::default());
    all.visit("quick", QUICK, Status::Unset);
    assert_eq!(all.exported().len(), 2);
}

#[test]
fn a_child_that_ends_after_its_root_shares_its_fate() {
    let traced = traced(0.0, Caps::default());
    for (name, status) in [("kept", Status::error("no")), ("not kept", Status::Unset)] {
        let mut root = self::Tracer::start(&traced.tracer, name);
        opentelemetry::trace::Span::set_status(&mut root, status);
        let cx = Context::new().with_span(root);
        let late = traced.tracer.build_with_context(SpanBuilder::from_name("late"), &cx);
        cx.span().end();
        drop(late);
    }
    assert_eq!(traced.exported(), ["kept", "late"]);
    assert_eq!(traced.counted("sampled_out"), 2.0);
}

#[tokio::test(start_paused = true)]
async fn traces_whose_root_never_ends_do_not_pile_up() {
    let caps = Caps { traces: 3, spans: 100, age: Duration::from_secs(600) };
    let traced = traced(1.0, caps);
    let open = || {
        let cx = Context::new().with_span(self::Tracer::start(&traced.tracer, "root"));
        drop(traced.tracer.build_with_context(SpanBuilder::from_name("child"), &cx));
        cx
    };
    let roots: Vec<_> = (0..5).map(|_| open()).collect();
    assert_eq!(traced.counted("dropped"), 2.0, "the oldest two");
    tokio::time::advance(Duration::from_secs(601)).await;
    let _last = open();
    assert_eq!(traced.counted("dropped"), 5.0, "and three by age");
    assert_eq!(traced.exported().len(), 0);
    drop(roots);
}
