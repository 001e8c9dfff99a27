use super::*;
use hmac::{Hmac, KeyInit as _, Mac as _};
use russh::keys::ssh_key::known_hosts::HostPatterns;
use russh::keys::{EcdsaCurve, HashAlg, PrivateKey};
use sha1::Sha1;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

fn key(algorithm: Algorithm) -> PublicKey {
    PrivateKey::random(&mut rand::rng(), algorithm).unwrap().public_key().clone()
}

fn ed25519() -> PublicKey {
    key(Algorithm::Ed25519)
}

fn ecdsa() -> PublicKey {
    key(Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 })
}

fn line(names: &str, key: &PublicKey) -> String {
    format!("{names} {}\n", key.to_openssh().unwrap())
}

struct Story {
    folder: tempfile::TempDir,
    keys: Arc<HostKeys>,
}

impl Story {
    fn new(policy: HostKeyPolicy, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/known_hosts");
        if !text.is_empty() {
            fs::create_dir(folder.path().join("state")).unwrap();
            fs::write(&path, text).unwrap();
        }
        Self { keys: Arc::new(HostKeys::new(path, policy, Stats::new())), folder }
    }

    fn path(&self) -> &Path {
        &self.keys.path
    }

    async fn verify(&self, host: &str, key: &PublicKey) -> Result<(), FailureReason> {
        self.keys.verify(host, 22, key.clone()).await.map(drop).map_err(|failure| failure.reason)
    }
}

#[tokio::test]
async fn a_new_key_is_recorded_once_and_for_good() {
    let story = Story::new(HostKeyPolicy::AcceptNew, "");
    let key = ed25519();
    for _ in 0..2 {
        story.verify("ESX1", &key).await.unwrap();
    }
    story.keys.verify("fd00::1", 2222, key.clone()).await.unwrap();
    let text = fs::read_to_string(story.path()).unwrap();
    assert_eq!(text, line("esx1", &key) + &line("[fd00::1]:2222", &key));
    assert_eq!(fs::metadata(story.path()).unwrap().permissions().mode() & 0o777, 0o600);
    let again = Arc::new(HostKeys::new(story.path().to_owned(), HostKeyPolicy::Strict, Stats::new()));
    again.verify("esx1", 22, key).await.unwrap();
    drop(story.folder);
}

#[tokio::test]
async fn a_changed_key_is_refused_with_both_fingerprints() {
    let (old, new) = (ed25519(), ed25519());
    let story = Story::new(HostKeyPolicy::AcceptNew, &line("esx1", &old));
    let failure = story.keys.verify("esx1", 22, new.clone()).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::HostKeyChanged);
    for key in [&old, &new] {
        assert!(failure.message.contains(&key.fingerprint(HashAlg::Sha256).to_string()), "{failure}");
    }
    assert_eq!(fs::read_to_string(story.path()).unwrap(), line("esx1", &old), "nothing is recorded");
}

#[tokio::test]
async fn a_key_of_another_kind_is_a_change_and_the_recorded_kind_is_known() {
    let story = Story::new(HostKeyPolicy::AcceptNew, &line("esx1", &ed25519()));
    assert_eq!(story.verify("esx1", &ecdsa()).await, Err(FailureReason::HostKeyChanged));
    assert_eq!(story.keys.algorithms("esx1", 22).await.unwrap().algorithms, [Algorithm::Ed25519]);
    assert_eq!(story.keys.algorithms("esx2", 22).await.unwrap().algorithms, []);
}

#[tokio::test]
async fn strict_refuses_what_is_unknown_and_insecure_takes_anything() {
    let (old, new) = (ed25519(), ed25519());
    let story = Story::new(HostKeyPolicy::Strict, &line("esx1", &old));
    assert_eq!(story.verify("esx2", &new).await, Err(FailureReason::HostKeyUnknown));
    let story = Story::new(HostKeyPolicy::Insecure, &line("esx1", &old));
    assert_eq!(story.verify("esx1", &new).await, Ok(()));
}

#[tokio::test]
async fn revoked_hashed_and_wildcard_lines_are_understood() {
    let (good, bad, wild, hashed) = (ed25519(), ed25519(), ed25519(), ed25519());
    let salt = b"0123456789abcdefghij".to_vec();
    let mac = Hmac::<Sha1>::new_from_slice(&salt).unwrap().chain_update(b"[esx9]:2022");
    let hash = <[u8; 20]>::try_from(&mac.finalize().into_bytes()[..]).unwrap();
    let text = [
        "# a comment\n\nnot an entry at all\n".to_owned(),
        line("esx1,10.0.0.1", &good),
        line("@revoked *", &bad),
        line("*.example.org,!odd.example.org", &wild),
        line(&HostPatterns::HashedName { salt, hash }.to_string(), &hashed),
    ];
    let story = Story::new(HostKeyPolicy::Strict, &text.concat());
    assert_eq!(story.verify("10.0.0.1", &good).await, Ok(()));
    assert_eq!(story.verify("esx1", &bad).await, Err(FailureReason::HostKeyRevoked));
    assert_eq!(story.verify("a.example.org", &wild).await, Ok(()));
    assert_eq!(story.verify("odd.example.org", &wild).await, Err(FailureReason::HostKeyUnknown));
    story.keys.verify("esx9", 2022, hashed.clone()).await.unwrap();
    assert_eq!(story.verify("esx9", &hashed).await, Err(FailureReason::HostKeyUnknown), "another port");
}

#[tokio::test]
async fn a_change_of_the_file_is_noticed() {
    let (old, new) = (ed25519(), ed25519());
    let story = Story::new(HostKeyPolicy::AcceptNew, &line("esx1", &old));
    story.verify("esx1", &old).await.unwrap();
    fs::write(story.path(), line("esx1", &new) + "# by hand\n").unwrap();
    assert_eq!(story.verify("esx1", &old).await, Err(FailureReason::HostKeyChanged));
    fs::remove_file(story.path()).unwrap();
    story.verify("esx1", &old).await.unwrap();
}

#[tokio::test]
async fn many_agents_that_record_at_once_lose_no_line() {
    let story = Story::new(HostKeyPolicy::AcceptNew, "# no end of line");
    let key = ed25519();
    let agents: Vec<_> = (0..4)
        .map(|_| HostKeys::new(story.path().to_owned(), HostKeyPolicy::AcceptNew, Stats::new()))
        .collect();
    let agents: Vec<_> = agents.into_iter().map(Arc::new).collect();
    let records = (0..40_usize).map(|number| {
        let (agent, key) = (agents[number % 4].clone(), key.clone());
        // Two agents record each host.
        tokio::spawn(async move { agent.verify(&format!("esx{}", number / 2), 22, key).await })
    });
    for record in records.collect::<Vec<_>>() {
        record.await.unwrap().unwrap();
    }
    let text = fs::read_to_string(story.path()).unwrap();
    assert_eq!(text.lines().count(), 21, "{text}");
    assert!(text.ends_with('\n'));
}

#[tokio::test]
async fn a_key_that_cannot_be_recorded_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let keys = Arc::new(HostKeys::new(
        folder.path().join("file/known_hosts"),
        HostKeyPolicy::AcceptNew,
        Stats::new(),
    ));
    let failure = keys.verify("esx1", 22, ed25519()).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::HostKeyUnknown, "{failure}");
}

fn hashed(name: &str) -> String {
    let salt = b"0123456789abcdefghij".to_vec();
    let mac = Hmac::<Sha1>::new_from_slice(&salt).unwrap().chain_update(name);
    let hash = <[u8; 20]>::try_from(&mac.finalize().into_bytes()[..]).unwrap();
    HostPatterns::HashedName { salt, hash }.to_string()
}

fn counted(story: &Story) -> Vec<(String, f64)> {
    let outcome = |s: crate::metric::Sample| (s.attributes.get("outcome").unwrap().to_owned(), s.value);
    let mut counted: Vec<_> = story.keys.stats.samples().into_iter().map(outcome).collect();
    counted.sort_by(|a, b| a.0.cmp(&b.0));
    counted
}

#[tokio::test]
async fn what_is_not_simply_known_is_counted() {
    let (old, new, bad) = (ed25519(), ed25519(), ed25519());
    let text = line("esx1", &old) + &line("@revoked *", &bad);
    let story = Story::new(HostKeyPolicy::AcceptNew, &text);
    story.verify("esx1", &old).await.unwrap();
    story.verify("esx2", &new).await.unwrap();
    story.verify("esx2", &new).await.unwrap();
    for key in [&new, &new, &bad] {
        story.verify("esx1", key).await.unwrap_err();
    }
    let one = |word: &str| (word.to_owned(), 1.0);
    assert_eq!(counted(&story), [one("accepted_new"), ("changed".to_owned(), 2.0), one("revoked")]);
    let story = Story::new(HostKeyPolicy::Strict, "");
    story.verify("esx1", &new).await.unwrap_err();
    assert_eq!(counted(&story), [one("unknown")]);
}

#[tokio::test]
async fn a_correction_by_hand_counts_at_once() {
    let (old, new) = (ed25519(), ed25519());
    let story = Story::new(HostKeyPolicy::AcceptNew, &line("esx1", &old));
    assert_eq!(story.verify("esx1", &new).await, Err(FailureReason::HostKeyChanged));
    // The same file, length and time, as within one tick of a coarse file system's clock.
    let modified = fs::metadata(story.path()).unwrap().modified().unwrap();
    fs::write(story.path(), line("esx1", &new)).unwrap();
    File::options().write(true).open(story.path()).unwrap().set_modified(modified).unwrap();
    assert_eq!(story.verify("esx1", &new).await, Ok(()));
}

#[tokio::test]
async fn a_key_known_without_the_port_is_known_at_any_port() {
    let (known, other) = (ed25519(), ed25519());
    let story = Story::new(HostKeyPolicy::Strict, &line(&hashed("esx1"), &known));
    assert_eq!(story.keys.verify("esx1", 2222, known.clone()).await, Ok(Standing::Known));
    assert_eq!(story.keys.algorithms("esx1", 2222).await.unwrap().algorithms, [Algorithm::Ed25519]);
    let failure = story.keys.verify("esx1", 2222, other).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::HostKeyUnknown, "it may be another server's");
}

#[tokio::test]
async fn a_host_that_only_an_authority_vouches_for_is_refused_with_the_reason() {
    let (authority, key) = (ed25519(), ed25519());
    let text = line("@cert-authority *.example.org", &authority);
    let story = Story::new(HostKeyPolicy::AcceptNew, &text);
    for key in [&authority, &key] {
        let failure = story.keys.verify("esx1.example.org", 22, key.clone()).await.unwrap_err();
        assert_eq!(failure.reason, FailureReason::HostKeyUnknown);
        assert!(failure.message.contains("no @cert-authority there has certified it"), "{failure}");
    }
    assert_eq!(fs::read_to_string(story.path()).unwrap(), text);
    fs::write(story.path(), text + &line("esx1.example.org", &key)).unwrap();
    story.verify("esx1.example.org", &key).await.unwrap();
}

#[tokio::test]
async fn a_certificate_counts_for_its_host_and_its_time_alone() {
    use russh::keys::ssh_key::certificate::{Builder, CertType};
    let (authority, host) =
        (PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap(), ecdsa().key_data().clone());
    let story =
        Story::new(HostKeyPolicy::AcceptNew, &line("@cert-authority *.example.org", authority.public_key()));
    let now = SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let certificate = |from: u64, until: u64, kind, change: &dyn Fn(&mut Builder)| {
        let builder = Builder::new_with_random_nonce(&mut rand::rng(), host.clone(), from, until);
        let mut builder = builder.unwrap();
        builder.cert_type(kind).unwrap();
        change(&mut builder);
        builder.sign(&authority).unwrap()
    };
    let name = |name: &'static str| {
        move |builder: &mut Builder| {
            builder.valid_principal(name).unwrap();
        }
    };
    let (host, user) = (CertType::Host, CertType::User);
    let option = |builder: &mut Builder| {
        name("esx1.example.org")(builder);
        builder.critical_option("force-command", "true").unwrap();
    };
    let nobody = |builder: &mut Builder| {
        builder.all_principals_valid().unwrap();
    };
    let (before, after) = (now - 1000, now + 1000);
    for (certificate, why) in [
        (certificate(before, after, host, &name("ESX1.example.org")), ""),
        (certificate(before, after, host, &name("*.example.org")), ""),
        (certificate(before, after, host, &name("esx2.example.org")), "it is for \"esx2.example.org\""),
        (certificate(before, after, host, &nobody), "it is for nobody"),
        (certificate(before, after, user, &name("esx1.example.org")), "it is no host's certificate"),
        (certificate(before, now - 10, host, &name("esx1.example.org")), "it has expired"),
        (certificate(now + 100, after, host, &name("esx1.example.org")), "it is not valid yet"),
        (
            certificate(before, after, host, &option),
            "its critical option \"force-command\" is not understood",
        ),
    ] {
        let verdict = story.keys.verify_certificate("esx1.example.org", 2222, certificate).await;
        match verdict {
            Ok(standing) => assert_eq!((standing, why), (Standing::Certified, "")),
            Err(failure) => {
                assert_eq!(failure.reason, FailureReason::HostKeyUnknown);
                assert!(!why.is_empty() && failure.message.ends_with(why), "{failure} / {why}");
            }
        }
    }
    let good = certificate(before, after, host, &name("*"));
    let failure = story.keys.verify_certificate("esx1.example.com", 22, good).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::HostKeyUnknown, "the authority is not for that domain");
}

#[tokio::test]
async fn whoever_only_looks_records_nothing() {
    let story = Story::new(HostKeyPolicy::AcceptNew, "");
    let looking = HostKeys::new(story.path().to_owned(), HostKeyPolicy::AcceptNew, Stats::new());
    let looking = Arc::new(looking.without_recording());
    assert_eq!(looking.verify("esx1", 22, ed25519()).await, Ok(Standing::New));
    assert!(!story.path().exists());
}

/// Takes what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn broken_lines_are_said_once_with_their_numbers() {
    use tracing::instrument::WithSubscriber as _;
    let (log, key) = (Log::default(), ed25519());
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let story = Story::new(HostKeyPolicy::AcceptNew, "# mine\nesx1 nonsense\nesx2\n");
    async {
        for host in ["esx3", "esx4"] {
            story.verify(host, &key).await.unwrap();
        }
        let text = fs::read_to_string(story.path()).unwrap();
        fs::write(story.path(), format!("{text}esx5 half a li")).unwrap();
        story.verify("esx3", &key).await.unwrap();
    }
    .with_subscriber(subscriber)
    .await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let told: Vec<_> = text.lines().filter_map(|line| line.split_once("entries: ")).map(|(_, l)| l).collect();
    assert_eq!(told, ["line 2, 3", "line 6"], "{text}");
    assert_eq!(text.matches("is new and was recorded").count(), 2, "{text}");
}

#[tokio::test]
async fn a_forgotten_host_is_new_again_to_an_agent_that_runs() {
    let (old, new, other) = (ed25519(), ed25519(), ed25519());
    let text = [
        "# kept\nbroken\n".to_owned(),
        line("ESX1,10.0.0.1", &old),
        line(&hashed("esx1"), &old),
        line("esx*", &other),
        line("@revoked esx1", &other),
        line("esx10", &other),
        format!("esx1 {} no end of line", old.to_openssh().unwrap()),
    ];
    let story = Story::new(HostKeyPolicy::Strict, &text.concat());
    story.verify("esx1", &old).await.unwrap();
    let mode = fs::Permissions::from_mode(0o640);
    fs::set_permissions(story.path(), mode.clone()).unwrap();

    let forgotten = forget(story.path(), "esx1", 22).unwrap();
    let lines = |keys: &[KnownKey]| keys.iter().map(|key| key.line).collect::<Vec<_>>();
    assert_eq!((lines(&forgotten.removed), lines(&forgotten.left)), (vec![3, 4, 8], vec![5, 6]));
    assert_eq!(forgotten.removed[0].fingerprint, old.fingerprint(HashAlg::Sha256).to_string());
    let left = fs::read_to_string(story.path()).unwrap();
    let expected = [text[0].clone(), line("10.0.0.1", &old), text[3..6].concat()].concat();
    assert_eq!(left, expected);
    assert_eq!(fs::metadata(story.path()).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(story.verify("esx1", &old).await, Err(FailureReason::HostKeyChanged), "a wildcard is left");
    assert_eq!(story.verify("10.0.0.1", &old).await, Ok(()));

    fs::write(story.path(), line("[esx2]:2222", &old)).unwrap();
    assert_eq!(forget(story.path(), "esx2", 22).unwrap(), Forgotten::default());
    assert_eq!(forget(story.path(), "esx2", 2222).unwrap().removed.len(), 1);
    let story = Story::new(HostKeyPolicy::AcceptNew, "");
    assert_eq!(forget(story.path(), "esx1", 22).unwrap(), Forgotten::default(), "no file, nothing known");
    story.verify("esx1", &new).await.unwrap();
}

#[tokio::test]
async fn the_list_names_every_line_with_a_key() {
    let key = ed25519();
    let text =
        [line("esx1,10.0.0.1", &key), "?\n".into(), line("@revoked *", &key), line(&hashed("x"), &key)];
    let story = Story::new(HostKeyPolicy::Strict, &text.concat());
    let known = list(story.path()).unwrap();
    assert_eq!(known.broken_lines, [2]);
    let shown: Vec<_> = known.keys.iter().map(|k| (k.line, k.host.as_str(), k.marker.as_deref())).collect();
    let hash = hashed("x");
    assert_eq!(shown, [(1, "esx1,10.0.0.1", None), (3, "*", Some("@revoked")), (4, hash.as_str(), None)]);
    assert!(known.keys[2].is_hashed() && known.keys[0].algorithm == "ssh-ed25519");
}
