//! The agent's own command, run by the simulated hosts' shell: each service is told for itself, and a
//! recording tells what the run told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use esxi_otel_agent::collectors::command::{Ending, Reader, compose, new_marker};
use esxi_otel_agent::collectors::{Answer, Question};
use esxi_otel_agent::outcome::FailureReason;
use esxi_otel_agent::simulator::faults::ServiceState;
use esxi_otel_agent::simulator::scripts;
use esxi_otel_agent::simulator::shell::{Event, Shell, ShellSpec};
use harness::in_time;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn questions() -> Vec<Question> {
    let ask = |name: &str| Question { id: name.into(), script: format!("/etc/init.d/{name} status") };
    ["hostd", "vpxa", "ntpd", "vvold", "nsx-opsagent", "nsx-proxy", "nsxa"].map(ask).to_vec()
}

/// What a client with a marker of its own reads.
async fn visit(shell: &Shell, services: &Arc<scripts::Services>) -> Vec<Answer> {
    let (questions, marker) = (questions(), new_marker());
    let mut answer = shell.run(
        &compose(questions.iter().map(|question| (question, None)), &marker, Duration::from_secs(2)),
        services,
    );
    let mut reader = Reader::new(&questions, &marker);
    let (started, mut output) = (Instant::now(), Vec::new());
    let read = async {
        while let Some(event) = answer.next().await {
            if let Event::Stdout(bytes) = event {
                output.extend_from_slice(&bytes);
            }
        }
    };
    in_time("the answer", read).await;
    for line in String::from_utf8_lossy(&output).lines() {
        reader.line(started.elapsed(), line);
    }
    reader.finish(Ending::Complete, started.elapsed())
}

#[tokio::test]
async fn every_service_is_told_for_itself_by_a_run_and_by_its_recording() {
    let shell = Shell::new(ShellSpec::default()).unwrap();
    let mut services = scripts::healthy();
    services.insert("vpxa".into(), ServiceState::Stopped);
    services.insert("ntpd".into(), ServiceState::Hung);
    services.insert("vvold".into(), ServiceState::Flood(1_000_000));
    services.insert("nsx-opsagent".into(), ServiceState::Noisy);
    services.insert("nsx-proxy".into(), ServiceState::Stubborn);
    let services = Arc::new(services);
    for round in ["run", "recording"] {
        let answers = visit(&shell, &services).await;
        let of = |name: &str| {
            let answer = answers.iter().find(|answer| &*answer.question == name).unwrap();
            answer.result.as_ref().map(|reply| (reply.lines.concat(), reply.exit)).map_err(|reason| *reason)
        };
        let (hostd, exit) = of("hostd").unwrap();
        assert_eq!((hostd.trim(), exit), ("hostd is running.", 0), "{round}");
        let (vpxa, exit) = of("vpxa").unwrap();
        assert_eq!((vpxa.trim(), exit), ("vpxa is not running", 3), "{round}");
        assert_eq!(of("ntpd"), Err(FailureReason::CommandTimeout), "{round}");
        assert_eq!(of("vvold"), Err(FailureReason::AnswerTooLarge), "{round}");
        assert!(of("nsx-opsagent").unwrap().0.contains("opsAgent is running"), "{round}");
        assert_eq!(of("nsx-proxy"), Err(FailureReason::CommandTimeout), "{round}");
        let (nsxa, exit) = of("nsxa").unwrap();
        assert!(nsxa.contains("/etc/init.d/nsxa: not found") && exit == 127, "{round}: {nsxa}");
    }
    assert_eq!(shell.recordings(), 1, "the second visit was a recording");
}
