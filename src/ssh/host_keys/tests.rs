use super::*;
use russh::keys::{EcdsaCurve, PrivateKey};
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
        Self { keys: Arc::new(HostKeys::new(path, policy)), folder }
    }

    fn path(&self) -> &Path {
        &self.keys.path
    }

    async fn verify(&self, host: &str, key: &PublicKey) -> Result<(), FailureReason> {
        self.keys.verify(host, 22, key.clone()).await.map_err(|failure| failure.reason)
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
    let again = Arc::new(HostKeys::new(story.path().to_owned(), HostKeyPolicy::Strict));
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
    assert_eq!(story.keys.algorithms("esx1", 22).await.unwrap(), [Algorithm::Ed25519]);
    assert_eq!(story.keys.algorithms("esx2", 22).await.unwrap(), []);
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
    let agents: Vec<_> =
        (0..4).map(|_| HostKeys::new(story.path().to_owned(), HostKeyPolicy::AcceptNew)).collect();
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
    let keys = Arc::new(HostKeys::new(folder.path().join("file/known_hosts"), HostKeyPolicy::AcceptNew));
    let failure = keys.verify("esx1", 22, ed25519()).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::HostKeyUnknown, "{failure}");
}

#[test]
fn wildcards_match_as_in_openssh() {
    for (pattern, text, hit) in [
        ("*", "", true),
        ("esx?", "esx1", true),
        ("esx?", "esx", false),
        ("*.example.*", "a.example.org", true),
        ("*a*b", "xaxxb", true),
        ("*a*b", "xaxxbc", false),
        ("", "x", false),
        ("[*]:22", "[esx]:22", true),
    ] {
        assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), hit, "{pattern} {text}");
    }
}
