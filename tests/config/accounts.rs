//! Accounts: from the environment, from files, by rules.

use super::*;

#[test]
fn a_missing_account_is_reported_for_collectors_that_are_on() {
    let bare = Sources { env: env([("ATLAS_FILE", "a.json"), STATE]), ..Sources::default() };
    assert_eq!(
        problems(&bare),
        "collectors.critical_service_collector: is on, but its account is missing: set ESXI_USER and \
         ESXI_PASSWORD or ESXI_KEY_FILE (passwords also as …_FILE), or switch it off with \
         collectors.critical_service_collector.enabled: false\n\
         collectors.overall_state_collector: is on, but its account is missing: set VCENTER_USER and \
         VCENTER_PASSWORD or VCENTER_MPW (passwords also as …_FILE), or switch it off with \
         collectors.overall_state_collector.enabled: false"
    );
    let off = "collectors: {overall_state_collector: {enabled: false}, critical_service_collector: {}}";
    let only_esxi = [STATE, ("ESXI_USER", "monitor"), ("ESXI_PASSWORD", "hunter3"), ("VCENTER_USER", "")];
    let loaded = load_text(off, Sources { env: env(only_esxi), ..Sources::default() }).unwrap();
    assert!(loaded.config.accounts.vcenter.is_none());
}

#[test]
fn the_master_password_wins_and_secrets_may_stand_in_files() {
    let folder = tempfile::tempdir().unwrap();
    let [mpw, password] = ["mpw", "password"].map(|name| folder.path().join(name));
    fs::write(&mpw, "master\n").unwrap();
    fs::write(&password, "secret\n").unwrap();
    let mut sources = with_env([
        ("VCENTER_MPW_FILE", mpw.to_str().unwrap()),
        ("ESXI_PASSWORD", ""),
        ("ESXI_PASSWORD_FILE", password.to_str().unwrap()),
    ]);
    let config = load_text("", sources.clone()).unwrap().config;
    let vcenter = config.accounts.vcenter.unwrap();
    assert_eq!(vcenter.proof, Proof::MasterPassword(SecretSource::File(mpw.clone())));
    let esxi = config.accounts.esxi.unwrap();
    assert_eq!(esxi.proof, Proof::Password(SecretSource::File(password)));

    sources.env.insert("VCENTER_MPW".to_owned(), "other".into());
    let report = load_text("", sources).unwrap_err().to_string();
    assert_eq!(report, "VCENTER_MPW_FILE: VCENTER_MPW is set, too; set one of the two");
}

#[test]
fn credentials_name_files_which_need_not_be_there_yet() {
    let text = "credentials:
  - {match: {site: eu-1}, esxi: {user: monitor, password_file: later}}
  - {match: {rack: 'r[0-9]+'}, vcenter: {user: ro, master_password_file: /nowhere/mpw}}
  - {esxi: {user: root, key_file: /nowhere/id, key_passphrase_file: pass, password_file: too}}";
    let mut sources = sources();
    sources.env.retain(|name, _| !name.starts_with("ESXI_") && !name.starts_with("VCENTER_"));
    let loaded = load_text(text, sources).unwrap();
    let file = |path: &str| SecretSource::File(loaded.file.as_ref().unwrap().with_file_name(path));
    let accounts = &loaded.config.accounts;
    assert!(accounts.esxi.is_none() && accounts.vcenter.is_none(), "the rules are enough");
    let [first, second, third] = &accounts.rules[..] else { panic!("{accounts:?}") };
    assert_eq!((first.name.as_str(), first.matches.len()), ("credentials[0]", 1));
    assert_eq!(first.esxi.as_ref().unwrap().proof, Proof::Password(file("later")));
    let vcenter = second.vcenter.as_ref().unwrap();
    assert_eq!(vcenter.proof, Proof::MasterPassword(file("/nowhere/mpw")));
    let key =
        KeySource { file: "/nowhere/id".into(), passphrase: Some(file("pass")), password: Some(file("too")) };
    assert_eq!(third.esxi.as_ref().unwrap().proof, Proof::Key(key));
    assert_eq!(
        loaded.notes[1],
        "credentials[1].vcenter: cannot read /nowhere/mpw: No such file or directory (os error 2); until \
         that is right its targets fail with no_credentials"
    );
    assert_eq!(loaded.notes.len(), 3);
}

#[test]
fn credentials_of_one_kind_leave_the_other_kind_to_the_environment() {
    let text = "credentials: [{esxi: {user: monitor, password_file: later}}]";
    let mut sources = sources();
    sources.env.retain(|name, _| !name.starts_with("VCENTER_"));
    let report = load_text(text, sources).unwrap_err().to_string();
    assert!(report.contains("set VCENTER_USER and") && !report.contains("ESXI"), "{report}");
}

#[test]
fn an_encrypted_key_needs_its_passphrase_and_a_password_goes_along() {
    let folder = tempfile::tempdir().unwrap();
    let [key, passphrase] = ["id", "passphrase"].map(|name| folder.path().join(name));
    let private = russh::keys::PrivateKey::random(&mut rand::rng(), russh::keys::Algorithm::Ed25519).unwrap();
    let locked = private.encrypt(&mut rand::rng(), "open sesame").unwrap();
    fs::write(&key, locked.to_openssh(russh::keys::ssh_key::LineEnding::LF).unwrap().as_bytes()).unwrap();
    fs::write(&passphrase, "open sesame\n").unwrap();
    let mut sources = with_env([("ESXI_KEY_FILE", key.to_str().unwrap())]);
    let report = load_text("", sources.clone()).unwrap_err().to_string();
    assert!(report.starts_with("ESXI_KEY_FILE: ") && report.contains("ESXI_KEY_PASSPHRASE_FILE"), "{report}");

    sources.env.extend(env([("ESXI_KEY_PASSPHRASE_FILE", passphrase.to_str().unwrap())]));
    let loaded = load_text("", sources).unwrap();
    let Proof::Key(found) = loaded.config.accounts.esxi.unwrap().proof else { panic!("no key") };
    assert_eq!((found.file, found.passphrase), (key, Some(SecretSource::File(passphrase))));
    assert!(found.password.is_some(), "for hosts that want both");
}
