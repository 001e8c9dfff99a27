use super::*;
use crate::inventory::Endpoint;
use russh::keys::{Algorithm, Certificate, PrivateKey, ssh_key};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

fn endpoint(name: &str) -> Endpoint {
    Endpoint { host: name.into(), port: None }
}

fn host() -> Host {
    let (address, site) = ("esx1.example.org".into(), "eu".into());
    Host { address, endpoint: endpoint("esx1.example.org"), site, labels: BTreeMap::new() }
}

fn vcenter(name: &str) -> Vcenter {
    let (address, site) = (format!("{name}:8443").into(), "eu".into());
    Vcenter { address, endpoint: endpoint(name), site, labels: BTreeMap::new() }
}

fn account(user: &str, proof: Proof) -> Option<Account> {
    Some(Account { user: user.into(), proof })
}

fn esxi(user: &str, proof: Proof) -> Accounts {
    Accounts::new(AccountsConfig { esxi: account(user, proof), ..AccountsConfig::default() })
}

fn value(text: &str) -> SecretSource {
    SecretSource::Value(Secret::new(text))
}

fn password(login: &Login) -> &str {
    login.secret.password().unwrap().expose()
}

fn key_of(file: &Path) -> Proof {
    Proof::Key(KeySource { file: file.to_owned(), passphrase: None, password: None })
}

fn random_key() -> PrivateKey {
    PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap()
}

fn private_key() -> String {
    random_key().to_openssh(ssh_key::LineEnding::LF).unwrap().to_string()
}

/// A certificate for `key` that ends after so many seconds.
fn certificate(key: &PrivateKey, kind: ssh_key::certificate::CertType, seconds: i64) -> Certificate {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let end = now.saturating_add_signed(seconds);
    let mut builder = ssh_key::certificate::Builder::new_with_random_nonce(
        &mut rand::rng(),
        key.public_key().key_data().clone(),
        now - 1000,
        end,
    )
    .unwrap();
    builder.cert_type(kind).unwrap().valid_principal("root").unwrap();
    builder.sign(&random_key()).unwrap()
}

#[tokio::test]
async fn without_an_account_the_failure_says_which_kind_is_missing() {
    let accounts = Accounts::new(AccountsConfig::default());
    let failure = accounts.for_host(&host()).await.unwrap_err();
    assert_eq!(failure, no_credentials("no ESXi account is configured"));
    let failure = accounts.for_vcenter(&vcenter("vc")).await.unwrap_err();
    assert_eq!(failure, no_credentials("no vCenter account is configured"));
}

#[tokio::test]
async fn a_changed_password_file_is_read_again_and_is_another_credential() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    fs::write(&path, "first\n").unwrap();
    let accounts = esxi("root", Proof::Password(SecretSource::File(path.clone())));
    let first = accounts.for_host(&host()).await.unwrap();
    assert_eq!(password(&first), "first");

    fs::write(&path, "second").unwrap();
    let second = accounts.for_host(&host()).await.unwrap();
    assert_eq!(password(&second), "second");
    assert_ne!(first.credential, second.credential);

    fs::write(&path, "first").unwrap();
    let third = accounts.for_host(&host()).await.unwrap();
    assert_eq!(first.credential, third.credential, "the content counts, not the newline nor the time");

    fs::write(&path, "").unwrap();
    let failure = accounts.for_host(&host()).await.unwrap_err();
    assert_eq!(failure, no_credentials(format!("{} is empty", path.display())));
}

#[tokio::test(start_paused = true)]
async fn a_new_password_in_the_file_gets_the_guards_tries_at_the_next_login() {
    let (folder, limits) = (
        tempfile::tempdir().unwrap(),
        LockoutConfig {
            wait: std::time::Duration::from_secs(1000),
            max_wait: std::time::Duration::from_secs(86_400),
            unproven_tries: 3,
            volatile: true,
        },
    );
    let guard = guard::Guard::new(limits, crate::stats::Stats::new());
    let path = folder.path().join("password");
    let accounts = esxi("root", Proof::Password(SecretSource::File(path.clone())));
    let target = |number: usize| crate::target::TargetId::host(format!("esx{number}"));
    // Wrong from the start: three tries in all, on a fleet of five thousand and however long it goes on.
    fs::write(&path, "wrong").unwrap();
    let mut tried = 0;
    for _ in 0..3 {
        for number in 0..5_000 {
            let login = accounts.for_host(&host()).await.unwrap();
            if guard.check(&target(number), login.credential).is_err() {
                continue;
            }
            guard.permit(&target(number), login.credential).await.unwrap().rejected();
            tried += 1;
        }
        tokio::time::advance(std::time::Duration::from_secs(100_000)).await;
    }
    assert_eq!(tried, 3);
    fs::write(&path, "right").unwrap();
    for number in 0..5_000 {
        let login = accounts.for_host(&host()).await.unwrap();
        guard.permit(&target(number), login.credential).await.unwrap().accepted();
    }
}

#[tokio::test]
async fn a_password_file_that_is_not_there_is_named() {
    let accounts = esxi("root", Proof::Password(SecretSource::File("/nowhere/password".into())));
    let failure = accounts.for_host(&host()).await.unwrap_err();
    let line = "cannot read /nowhere/password: No such file or directory (os error 2)";
    assert_eq!(failure, no_credentials(line));
}

#[tokio::test]
async fn user_and_secret_both_make_the_credential() {
    let login = async |user: &str, secret: &str| {
        let both = account(user, Proof::Password(value(secret)));
        let config = AccountsConfig { esxi: both, ..AccountsConfig::default() };
        let accounts = Accounts::with_credentials(config, Arc::new(guard::CredentialKey::of([7; 32])));
        accounts.for_host(&host()).await.unwrap().credential
    };
    assert_eq!(login("root", "secret").await, login("root", "secret").await);
    assert_ne!(login("root", "secret").await, login("monitor", "secret").await);
    assert_ne!(login("a", "bc").await, login("ab", "c").await);
}

#[tokio::test]
async fn two_processes_share_no_credential_ids() {
    let proof = || Proof::Password(value("secret"));
    let one = esxi("root", proof()).for_host(&host()).await.unwrap();
    let other = esxi("root", proof()).for_host(&host()).await.unwrap();
    assert_ne!(one.credential, other.credential);
}

#[tokio::test]
async fn a_key_file_is_read_and_a_bad_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("id_ed25519");
    fs::write(&path, private_key()).unwrap();
    let accounts = esxi("root", key_of(&path));
    let first = accounts.for_host(&host()).await.unwrap();
    assert!(matches!(first.secret, LoginSecret::Key(_)));

    fs::write(&path, private_key()).unwrap();
    let second = accounts.for_host(&host()).await.unwrap();
    assert_ne!(first.credential, second.credential);

    fs::write(&path, "no key\n").unwrap();
    let failure = accounts.for_host(&host()).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::NoCredentials);
    let begin = format!("{} holds no private key: ", path.display());
    assert!(failure.message.starts_with(&begin), "{failure}");
}

#[tokio::test]
async fn a_key_behind_a_passphrase_opens_with_it_and_says_so_without() {
    let folder = tempfile::tempdir().unwrap();
    let [path, passphrase] = ["id_ed25519", "passphrase"].map(|name| folder.path().join(name));
    let locked = random_key().encrypt(&mut rand::rng(), "open sesame").unwrap();
    fs::write(&path, locked.to_openssh(ssh_key::LineEnding::LF).unwrap().as_bytes()).unwrap();
    let failure = esxi("root", key_of(&path)).for_host(&host()).await.unwrap_err();
    let line = format!(
        "{} is protected by a passphrase: put it into a file and name that (key_passphrase_file or \
         ESXI_KEY_PASSPHRASE_FILE)",
        path.display()
    );
    assert_eq!(failure, no_credentials(line));

    fs::write(&passphrase, "open barley\n").unwrap();
    let source = KeySource {
        file: path.clone(),
        passphrase: Some(SecretSource::File(passphrase.clone())),
        password: None,
    };
    let accounts = esxi("root", Proof::Key(source));
    for _ in 0..2 {
        let failure = accounts.for_host(&host()).await.unwrap_err();
        let line = format!("{} can't be opened with its passphrase: ", path.display());
        assert!(failure.message.starts_with(&line) && !failure.message.contains("barley"), "{failure}");
    }
    fs::write(&passphrase, "open sesame\n").unwrap();
    let login = accounts.for_host(&host()).await.unwrap();
    assert_eq!(login.secret.key().unwrap().private().public_key(), locked.public_key());
}

#[tokio::test]
async fn the_certificate_beside_a_key_comes_along_unless_it_is_of_no_use() {
    use ssh_key::certificate::CertType::{Host, User};
    let folder = tempfile::tempdir().unwrap();
    let [path, beside] = ["id", "id-cert.pub"].map(|name| folder.path().join(name));
    let key = random_key();
    fs::write(&path, key.to_openssh(ssh_key::LineEnding::LF).unwrap().as_bytes()).unwrap();
    let accounts = esxi("root", key_of(&path));
    assert!(accounts.for_host(&host()).await.unwrap().secret.key().unwrap().certificate().is_none());

    let good = certificate(&key, User, 1000);
    fs::write(&beside, good.to_openssh().unwrap() + "\n").unwrap();
    let login = accounts.for_host(&host()).await.unwrap();
    assert_eq!(login.secret.key().unwrap().certificate(), Some(&good));

    let named = |rest: &str| format!("{} {rest}", beside.display());
    for (text, problem) in [
        (certificate(&key, Host, 1000).to_openssh().unwrap(), "is a certificate of a host, not of a user"),
        (certificate(&random_key(), User, 1000).to_openssh().unwrap(), "is the certificate of another key"),
        (certificate(&key, User, -10).to_openssh().unwrap(), "has expired at 2"),
        (key.public_key().to_openssh().unwrap(), "holds no OpenSSH certificate"),
        (String::new(), "is empty"),
    ] {
        fs::write(&beside, text).unwrap();
        let failure = accounts.for_host(&host()).await.unwrap_err();
        assert_eq!(failure.reason, FailureReason::NoCredentials);
        assert!(failure.message.starts_with(&named(problem)), "{failure}");
    }
}

#[tokio::test]
async fn a_password_is_the_same_credential_with_a_key_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("id");
    fs::write(&path, private_key()).unwrap();
    let alone = esxi("root", Proof::Password(value("secret"))).config;
    let both = KeySource { file: path, passphrase: None, password: Some(value("secret")) };
    let both = esxi("root", Proof::Key(both)).config;
    let key = Arc::new(guard::CredentialKey::of_process());
    let login =
        async |config| Accounts::with_credentials(config, Arc::clone(&key)).for_host(&host()).await.unwrap();
    let (alone, both) = (login(alone).await, login(both).await);
    assert_eq!((password(&both), both.credential), ("secret", alone.credential));
    assert!(both.secret.key().is_some());
}

/// A rule: labels and patterns, and the users for hosts and vCenters.
fn rule(matches: &[(&str, &str)], esxi: Option<&str>, vcenter: Option<&str>) -> CredentialRule {
    let of = |user: Option<&str>| account(user?, Proof::Password(value("secret")));
    CredentialRule {
        name: format!("{matches:?}"),
        matches: matches.iter().map(|(label, p)| ((*label).to_owned(), p.parse().unwrap())).collect(),
        esxi: of(esxi),
        vcenter: of(vcenter),
    }
}

#[test]
fn the_first_rule_that_matches_and_has_such_an_account_wins() {
    let rules = vec![
        rule(&[("site", "eu")], None, Some("for vCenters")),
        rule(&[("address", "esx1")], Some("not whole"), None),
        rule(&[("address", "esx1|x")], Some("not whole"), None),
        rule(&[("site", "eu"), ("rack", "r[0-9]")], Some("by rack"), None),
        rule(&[("rack", "")], Some("without a rack"), None),
        rule(&[("name", "esx1\\..*")], Some("by name"), Some("never")),
    ];
    let environment = account("environment", Proof::Password(value("secret")));
    let config = AccountsConfig { rules, esxi: environment, vcenter: None };
    let user = |host: &Host| config.of_host(host).unwrap().account.user.to_string();
    let mut host = host();
    assert_eq!(user(&host), "without a rack");
    host.labels.insert("rack".into(), "r7".into());
    assert_eq!(user(&host), "by rack");
    host.labels.insert("rack".into(), "r77".into());
    assert_eq!(user(&host), "by name", "the name is that of the endpoint");
    host.labels.insert("name".into(), "node1".into());
    assert_eq!(user(&host), "environment", "unless there is a label of that name");

    let mut vc = vcenter("vc1");
    let chosen = config.of_vcenter(&vc).unwrap();
    assert_eq!(chosen.to_string(), "for vCenters by password ([(\"site\", \"eu\")])");
    vc.site = "us".into();
    assert!(config.of_vcenter(&vc).is_none());
}

#[tokio::test]
async fn a_target_that_no_rule_fits_has_no_credentials() {
    let rules = vec![rule(&[("site", "us")], Some("root"), None)];
    let accounts = Accounts::new(AccountsConfig { rules, ..AccountsConfig::default() });
    let failure = accounts.for_host(&host()).await.unwrap_err();
    assert_eq!(failure, no_credentials("no ESXi account is configured, and no credentials match"));
}

#[test]
fn a_pattern_can_not_undo_its_anchors_and_its_problem_is_one_line() {
    for (pattern, problem) in [
        ("a)|(?:b", r#""a)|(?:b" is no regular expression: unopened group"#),
        ("esx[", r#""esx[" is no regular expression: unclosed character class"#),
    ] {
        assert_eq!(pattern.parse::<Matcher>().unwrap_err(), problem);
    }
}

#[tokio::test]
async fn each_vcenter_has_a_password_of_its_own_by_its_name_without_the_port() {
    let proof = Proof::MasterPassword(value("password"));
    let accounts =
        Accounts::new(AccountsConfig { vcenter: account("user", proof), ..AccountsConfig::default() });
    let one = accounts.for_vcenter(&vcenter("site.example")).await.unwrap();
    let other = accounts.for_vcenter(&vcenter("vc45.example.org")).await.unwrap();
    assert_eq!((password(&one), password(&other)), ("RaneYacoXemf0(", "SoblDonoDulu4"));
    assert_ne!(one.credential, other.credential);
}

#[test]
fn nothing_that_is_secret_is_in_the_debug_output() {
    let config = AccountsConfig {
        esxi: account("root", Proof::Password(value("hunter2"))),
        vcenter: account("ro", Proof::MasterPassword(value("hunter3"))),
        rules: Vec::new(),
    };
    let printed = format!("{config:?}");
    assert!(printed.contains("root") && !printed.contains("hunter"), "{printed}");
}
