use super::*;
use crate::inventory::Endpoint;
use std::collections::BTreeMap;
use std::fs;

fn endpoint(name: &str) -> Endpoint {
    Endpoint { host: name.into(), port: None }
}

fn host() -> Host {
    let (address, site) = ("esx1.example.org".into(), "eu".into());
    Host { address, endpoint: endpoint("esx1.example.org"), site, labels: BTreeMap::new() }
}

fn vcenter(name: &str) -> Vcenter {
    Vcenter { address: format!("{name}:8443").into(), endpoint: endpoint(name), site: "eu".into() }
}

fn account(user: &str, proof: Proof) -> Option<Account> {
    Some(Account { user: user.into(), proof })
}

fn esxi(user: &str, proof: Proof) -> Accounts {
    Accounts::new(AccountsConfig { esxi: account(user, proof), vcenter: None })
}

fn value(text: &str) -> SecretSource {
    SecretSource::Value(Secret::new(text))
}

fn password(login: &Login) -> &str {
    match &login.secret {
        LoginSecret::Password(password) => password.expose(),
        LoginSecret::Key(_) => panic!("a key where a password was expected"),
    }
}

fn private_key() -> String {
    let key = PrivateKey::random(&mut rand::rng(), russh::keys::Algorithm::Ed25519).unwrap();
    key.to_openssh(russh::keys::ssh_key::LineEnding::LF).unwrap().to_string()
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
        let config = AccountsConfig { esxi: both, vcenter: None };
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
    let accounts = esxi("root", Proof::Key(path.clone()));
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
async fn a_key_behind_a_passphrase_is_refused_with_a_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("id_ed25519");
    let key = russh::keys::decode_secret_key(&private_key(), None).unwrap();
    let locked = key.encrypt(&mut rand::rng(), "passphrase").unwrap();
    let text = locked.to_openssh(russh::keys::ssh_key::LineEnding::LF).unwrap();
    fs::write(&path, text.as_bytes()).unwrap();
    let failure = esxi("root", Proof::Key(path.clone())).for_host(&host()).await.unwrap_err();
    let line = format!("{} is protected by a passphrase, which is not supported", path.display());
    assert_eq!(failure, no_credentials(line));
}

#[tokio::test]
async fn each_vcenter_has_a_password_of_its_own_by_its_name_without_the_port() {
    let proof = Proof::MasterPassword(value("password"));
    let accounts = Accounts::new(AccountsConfig { esxi: None, vcenter: account("user", proof) });
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
    };
    let printed = format!("{config:?}");
    assert!(printed.contains("root") && !printed.contains("hunter"), "{printed}");
}
