//! What is known outlives the process, and is one for all processes.

use super::journal::Journal;
use super::tests::{Ledger, NEW, RIGHT, Step, WAIT, config, host, step};
use super::*;
use proptest::prelude::*;
use std::fs;
use std::io::Write as _;
use std::sync::mpsc::channel;
use tempfile::TempDir;

/// In memory where there is such a place: the property below syncs ten thousands of times.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Time as a test wants it, one for all clocks of a machine.
#[derive(Clone)]
struct Time {
    since_boot: Arc<AtomicU64>,
    wall: Arc<AtomicU64>,
}

impl Time {
    fn new() -> Self {
        let at = |ms| Arc::new(AtomicU64::new(ms));
        Self { since_boot: at(60_000), wall: at(1_800_000_000_000) }
    }

    fn pass(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap();
        self.since_boot.fetch_add(ms, Ordering::Relaxed);
        self.wall.fetch_add(ms, Ordering::Relaxed);
    }

    fn clock(&self, boot: &str) -> Clock {
        let (since_boot, wall) = (Arc::clone(&self.since_boot), Arc::clone(&self.wall));
        let read = |of: Arc<AtomicU64>| Box::new(move || of.load(Ordering::Relaxed));
        Clock::made_up(boot, read(since_boot), read(wall))
    }

    async fn guard(&self, folder: &TempDir) -> Guard {
        Guard::open_with(config(), folder.path(), Stats::new(), self.clock("boot")).await
    }
}

impl Guard {
    /// Ends as a killed process does, whatever is under way.
    async fn crash(self) {
        let writer = self.writer.as_ref().unwrap();
        writer.send(Message::Crash).unwrap();
        while writer.send(Message::Crash).is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn end(self) {
        self.flush().await;
        self.crash().await;
    }
}

async fn why(guard: &Guard, target: &TargetId, credential: CredentialId) -> Why {
    guard.permit(target, credential).await.unwrap_err().why
}

fn journal_of(folder: &TempDir) -> std::path::PathBuf {
    folder.path().join("guard/journal")
}

/// What `check` says, as soon as the writer has looked.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_restart_forgets_nothing() {
    let (folder, time) = (folder(), Time::new());
    let guard = time.guard(&folder).await;
    guard.permit(&host(1), RIGHT).await.unwrap().accepted();
    guard.permit(&host(2), RIGHT).await.unwrap().rejected();
    for number in 1..=3 {
        guard.permit(&host(number + 10), NEW).await.unwrap().rejected();
    }
    guard.end().await;

    let guard = time.guard(&folder).await;
    assert_eq!(why(&guard, &host(2), RIGHT).await, Why::TargetRejected);
    assert_eq!(why(&guard, &host(20), NEW).await, Why::Unproven);
    guard.permit(&host(3), RIGHT).await.unwrap().accepted();
    guard.end().await;

    time.pass(WAIT);
    let guard = time.guard(&folder).await;
    guard.permit(&host(2), RIGHT).await.unwrap().rejected();
    guard.end().await;
    time.pass(WAIT * 1000);
    assert_eq!(why(&time.guard(&folder).await, &host(2), RIGHT).await, Why::TargetShut);
}

#[tokio::test]
async fn a_crash_loop_gets_the_tries_of_one_process() {
    let (folder, time) = (folder(), Time::new());
    let mut tried = 0;
    for _ in 0..10 {
        let guard = time.guard(&folder).await;
        for number in 0..20 {
            if guard.check(&host(number), RIGHT).is_err() || tried % 3 == 0 && number > 0 {
                continue;
            }
            if let Ok(permit) = guard.permit(&host(number), RIGHT).await {
                tried += 1;
                std::mem::forget(permit);
            }
        }
        guard.crash().await;
        time.pass(Duration::from_secs(5));
    }
    assert!(tried <= 3, "{tried} tries");
    let guard = time.guard(&folder).await;
    assert_eq!(why(&guard, &host(0), RIGHT).await, Why::TargetWaits, "it counts for the target");
    assert_eq!(why(&guard, &host(19), RIGHT).await, Why::UnprovenWaits);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_processes_with_512_logins_at_once_make_three_tries_together() {
    let (folder, time) = (folder(), Time::new());
    let guards = [Arc::new(time.guard(&folder).await), Arc::new(time.guard(&folder).await)];
    let login = |number: usize| {
        let guard = Arc::clone(&guards[number % 2]);
        tokio::spawn(async move {
            let permit = guard.permit(&host(number), RIGHT).await;
            permit.map(Permit::rejected).is_ok()
        })
    };
    let logins: Vec<_> = (0..512).map(login).collect();
    let mut tried = 0;
    for login in logins {
        tried += usize::from(login.await.unwrap());
    }
    assert_eq!(tried, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn logins_at_the_same_time_share_a_sync() {
    let folder = tempfile::tempdir().unwrap();
    let guard = Arc::new(Time::new().guard(&folder).await);
    guard.permit(&host(0), RIGHT).await.unwrap().accepted();
    let before = guard.syncs();
    // All of them ask before anything can be written.
    let mut journal = Journal::prepare(folder.path()).unwrap();
    let lock = journal.lock().unwrap();
    let permits = (1..=512).map(|number| {
        let guard = Arc::clone(&guard);
        Box::pin(async move { guard.permit(&host(number), RIGHT).await.unwrap().accepted() })
    });
    let mut permits: Vec<_> = permits.collect();
    for permit in &mut permits {
        assert!(futures::poll!(permit).is_pending());
    }
    drop(lock);
    futures::future::join_all(permits).await;
    let syncs = guard.syncs() - before;
    assert!(syncs <= 2, "the one that came first, and all the others: {syncs} syncs");
}

#[tokio::test]
async fn a_verdict_of_another_process_ends_the_wait_for_it() {
    let (folder, time) = (folder(), Time::new());
    let (one, other, target) = (time.guard(&folder).await, time.guard(&folder).await, host(1));
    let permit = one.permit(&target, RIGHT).await.unwrap();
    let (second, ()) = tokio::join!(other.permit(&target, RIGHT), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        permit.accepted();
    });
    second.unwrap().accepted();
}

#[tokio::test]
async fn a_last_line_without_its_end_was_never_written() {
    let (folder, time) = (folder(), Time::new());
    let guard = time.guard(&folder).await;
    guard.permit(&host(1), RIGHT).await.unwrap().rejected();
    guard.end().await;
    let mut file = fs::OpenOptions::new().append(true).open(journal_of(&folder)).unwrap();
    file.write_all(b"0badc0de {\"try\":{\"at\":18000").unwrap();
    let guard = time.guard(&folder).await;
    assert_eq!(why(&guard, &host(1), RIGHT).await, Why::TargetRejected);
    guard.permit(&host(2), RIGHT).await.unwrap().rejected();
    guard.end().await;
    assert_eq!(why(&time.guard(&folder).await, &host(2), RIGHT).await, Why::TargetRejected);
}

#[tokio::test]
async fn damage_is_refused_in_one_line_until_somebody_releases() {
    let (folder, time) = (folder(), Time::new());
    let guard = time.guard(&folder).await;
    guard.permit(&host(1), RIGHT).await.unwrap().rejected();
    guard.end().await;
    let mut bytes = fs::read(journal_of(&folder)).unwrap();
    let middle = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 30;
    bytes[middle] ^= 1;
    fs::write(journal_of(&folder), bytes).unwrap();

    let guard = time.guard(&folder).await;
    let refusal = guard.check(&host(9), NEW).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        format!(
            "login at host esx9 not tried, to keep the account from being locked: the guard's memory is \
             damaged ({}: line 2: its checksum is wrong): see to it that no account is about to be locked, \
             then run `esxi-otel-agent guard release --all`",
            journal_of(&folder).display()
        )
    );
    assert!(release(&config(), folder.path(), Scope::Host("esx1".to_owned())).is_err());
    release(&config(), folder.path(), Scope::All).unwrap();
    until("the agent goes on", || guard.check(&host(1), RIGHT).is_ok()).await;
    guard.permit(&host(1), RIGHT).await.unwrap().accepted();
    assert!(folder.path().join("guard/journal.damaged").exists());
}

#[tokio::test]
async fn a_journal_without_its_key_or_that_is_gone_is_not_an_empty_one() {
    let (folder, time) = (folder(), Time::new());
    let guard = time.guard(&folder).await;
    fs::remove_file(journal_of(&folder)).unwrap();
    until("it is noticed", || guard.check(&host(1), RIGHT).is_err()).await;
    assert!(matches!(why(&guard, &host(1), RIGHT).await, Why::Memory(why) if why.contains("it is gone")));
    guard.end().await;
    time.guard(&folder).await.end().await;
    fs::remove_file(folder.path().join("guard/key")).unwrap();
    let guard = time.guard(&folder).await;
    assert!(matches!(why(&guard, &host(1), RIGHT).await, Why::Memory(why) if why.contains("key is missing")));
}

#[tokio::test]
async fn a_memory_that_is_still_being_read_is_no_trouble() {
    let (folder, time) = (folder(), Time::new());
    let mut other = Journal::prepare(folder.path()).unwrap();
    let stats = Stats::new();
    let usable = || stats.samples().iter().find(|s| s.def.name == USABLE.name).map(|s| s.value);

    let reading = other.lock().unwrap();
    let open = Guard::open_with(config(), folder.path(), Arc::clone(&stats), time.clock("boot"));
    tokio::pin!(open);
    assert!(futures::poll!(open.as_mut()).is_pending());
    assert_eq!(usable(), None, "nobody can know it yet");
    drop(reading);
    open.await;
    assert_eq!(usable(), Some(1.0));
}

#[tokio::test]
async fn where_nothing_can_be_written_no_password_is_tried() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let state_dir = file.path().join("state");
    let stats = Stats::new();
    let guard = Guard::open(config(), &state_dir, Arc::clone(&stats)).await;
    let failure = Failure::from(guard.check(&host(1), RIGHT).unwrap_err());
    assert_eq!(failure.reason, FailureReason::AuthGuarded);
    assert!(failure.message.contains("the guard's memory can't be written: "), "{}", failure.message);
    assert!(stats.samples().iter().any(|sample| sample.def.name == USABLE.name && sample.value == 0.0));
    let guard = Guard::open(LockoutConfig { volatile: true, ..config() }, &state_dir, Stats::new()).await;
    guard.permit(&host(1), RIGHT).await.unwrap().accepted();
}

#[tokio::test]
async fn what_is_released_is_tried_by_the_agent_that_runs() {
    let (folder, time) = (folder(), Time::new());
    let guard = time.guard(&folder).await;
    guard.permit(&host(0), RIGHT).await.unwrap().accepted();
    guard.permit(&host(1), RIGHT).await.unwrap().rejected();
    for number in 1..=3 {
        guard.permit(&host(number + 10), NEW).await.unwrap().rejected();
    }
    guard.flush().await;
    release(&config(), folder.path(), Scope::Host("esx1".to_owned())).unwrap();
    until("the host is open", || guard.check(&host(1), RIGHT).is_ok()).await;
    assert!(guard.check(&host(20), NEW).is_err());
    release(&config(), folder.path(), Scope::Credential(NEW)).unwrap();
    until("the credential is open", || guard.check(&host(20), NEW).is_ok()).await;
}

#[tokio::test]
async fn files_are_for_their_owner_alone_and_hold_no_secret() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = folder();
    let guard = Guard::open(config(), folder.path(), Stats::new()).await;
    let secret = crate::accounts::LoginSecret::Password(crate::accounts::Secret::new("hunter2"));
    let id = guard.credentials().id(&"root".into(), &secret);
    guard.permit(&host(1), id).await.unwrap().rejected();
    guard.flush().await;
    let mode = |name: &str| {
        fs::metadata(folder.path().join("guard").join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!([mode(""), mode("live")], [0o700; 2]);
    assert_eq!(["journal", "key", "lock"].map(mode), [0o600; 3]);
    let text = fs::read_to_string(journal_of(&folder)).unwrap();
    assert!(text.contains("root") && !text.contains("hunter2"), "{text}");

    let seen = remembered(&config(), folder.path()).unwrap();
    assert_eq!(seen.credentials[0].user.as_deref(), Some("root"));
    assert_eq!((seen.credentials[0].state, seen.credentials[0].rejected), (State::Unproven, 1));
    assert_eq!(seen.targets[0].target, host(1));
    // The next process knows the credential again.
    let next = Guard::open(config(), folder.path(), Stats::new()).await;
    assert_eq!(next.credentials().id(&"root".into(), &secret), id);
}

#[tokio::test]
async fn a_clock_that_is_set_back_or_on_changes_no_wait() {
    let (folder, time) = (folder(), Time::new());
    let guard = time.guard(&folder).await;
    guard.permit(&host(1), RIGHT).await.unwrap().rejected();
    guard.flush().await;
    for wall in [0, 1_600_000_000_000, 4_000_000_000_000] {
        time.wall.store(wall, Ordering::Relaxed);
        let later = time.guard(&folder).await;
        assert!(guard.check(&host(1), RIGHT).is_err() && later.check(&host(1), RIGHT).is_err());
        later.end().await;
    }
    guard.end().await;
    // The machine starts with its clock years back: the wait goes on where it was.
    time.wall.store(1_000_000_000, Ordering::Relaxed);
    time.since_boot.store(10_000, Ordering::Relaxed);
    let booted = Guard::open_with(config(), folder.path(), Stats::new(), time.clock("next boot")).await;
    time.pass(WAIT - Duration::from_secs(1));
    assert!(booted.check(&host(1), RIGHT).is_err());
    time.pass(Duration::from_secs(1));
    assert!(booted.check(&host(1), RIGHT).is_ok());
}

/// A process: its writer, driven by hand.
struct Process(Writer);

impl Process {
    fn start(folder: &TempDir, time: &Time) -> Self {
        let key = CredentialKey::default();
        let shared = Shared::new(config(), time.clock("boot"), key, Stats::new());
        Self(Writer::new(config(), folder.path().to_owned(), shared, channel().0))
    }

    fn grant(&mut self, target: &TargetId, credential: CredentialId) -> bool {
        let request = Request { target: target.clone(), credential, answer: oneshot::channel().0 };
        self.0.write(&[request]).unwrap()[0]
    }

    fn conclude(&mut self, target: TargetId, credential: CredentialId, outcome: Outcome) {
        self.0.owed.push(Verdict { target, credential, outcome });
        self.0.write(&[]).unwrap();
    }
}

#[derive(Debug, Clone)]
enum Event {
    /// Something that a process does.
    By(usize, Step),
    /// Killed, and started again.
    Crash(usize),
    /// Killed while it wrote a line.
    Tear(usize, usize),
    Compact,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        16 => (0..2_usize, step()).prop_map(|(process, step)| Event::By(process, step)),
        1 => (0..2_usize).prop_map(Event::Crash),
        1 => (0..2_usize, 1..40_usize).prop_map(|(process, length)| Event::Tear(process, length)),
        1 => Just(Event::Compact),
    ]
}

fn compact(folder: &TempDir, time: &Time) {
    let mut journal = Journal::prepare(folder.path()).unwrap();
    let mut locked = journal.lock().unwrap();
    let mut memory = Memory::new(config());
    locked.read(true).unwrap().entries.into_iter().for_each(|entry| memory.apply(entry));
    let entries = memory.entries(&time.clock("boot"));
    locked.compact(&entries).unwrap();
    let mut again = Memory::new(config());
    entries.into_iter().for_each(|entry| again.apply(entry));
    assert_eq!(again.rules.credentials, memory.rules.credentials);
    assert_eq!(again.rules.targets, memory.rules.targets);
    assert_eq!(again.rules.under_way, memory.rules.under_way);
    assert_eq!(again.rules.closed(), memory.rules.closed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_sequence_of_outcomes_and_crashes_of_two_processes_breaks_a_bound(
        events in proptest::collection::vec(event(), 1..120)
    ) {
        let (folder, time) = (folder(), Time::new());
        let mut processes = [Process::start(&folder, &time), Process::start(&folder, &time)];
        // Of the try that stands at the same place in the ledger.
        let mut owners: Vec<usize> = Vec::new();
        let mut ledger = Ledger::default();
        for event in events {
            let now = Moment(time.wall.load(Ordering::Relaxed));
            match event {
                Event::By(process, Step::Begin(number, credential)) => {
                    let (target, credential) = (host(number), CredentialId([credential + 1; 16]));
                    if processes[process].grant(&target, credential) {
                        ledger.check_grant(&target, credential, now);
                        ledger.in_flight.push((target, credential, now));
                        owners.push(process);
                    }
                }
                Event::By(_, Step::End(which, outcome)) if !owners.is_empty() => {
                    let which = which % owners.len();
                    let owner = owners.remove(which);
                    let (target, credential) = ledger.end(which, outcome, now);
                    processes[owner].conclude(target, credential, outcome);
                }
                Event::By(_, Step::End(..)) => {}
                Event::By(_, Step::Pass(seconds)) => time.pass(Duration::from_secs(seconds)),
                Event::Crash(process) | Event::Tear(process, _) => {
                    while let Some(which) = owners.iter().position(|owner| *owner == process) {
                        owners.remove(which);
                        ledger.end(which, Outcome::LostAfterSecret, now);
                    }
                    processes[process] = Process::start(&folder, &time);
                    if let (Event::Tear(_, length), Ok(mut file)) =
                        (event, fs::OpenOptions::new().append(true).open(journal_of(&folder)))
                    {
                        file.write_all(&[b'7'; 40][..length]).unwrap();
                    }
                }
                Event::Compact => compact(&folder, &time),
            }
        }
    }
}
