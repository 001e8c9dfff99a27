//! The section `credentials`: accounts for some of the targets. No secret stands in the file itself.

use super::section::{Context, Element, Section};
use super::values::{parsed, text};
use crate::accounts::{
    Account, CredentialRule, KeySource, Proof, SecretSource, read_key_files, read_secret_file,
};
use std::path::PathBuf;

/// The entries, in the order of the file. A file that can't be read is said and no problem: the targets
/// that need it fail until it is there.
pub(super) fn resolve(root: &mut Section<'_>) -> Vec<CredentialRule> {
    root.list("credentials").unwrap_or_default().iter().map(rule).collect()
}

fn rule(element: &Element<'_>) -> CredentialRule {
    let mut section = element.section();
    let matches = section.map("match");
    let matches = matches.into_iter().filter_map(|(label, value)| Some((label.into(), value.parse(parsed)?)));
    let matches = matches.collect();
    if !["esxi", "vcenter"].iter().any(|kind| section.names(kind)) {
        element.problem("names no account: esxi, vcenter or both are needed");
    }
    let esxi = account(&mut section, "esxi", esxi_proof);
    let vcenter = account(&mut section, "vcenter", vcenter_proof);
    CredentialRule { name: element.path.clone(), matches, esxi, vcenter }
}

/// The account under `key`, if there is one that makes sense.
fn account(
    rule: &mut Section<'_>,
    key: &'static str,
    proof: impl Fn(&mut Section<'_>) -> Result<Proof, &'static str>,
) -> Option<Account> {
    let (context, there, place) = (rule.context, rule.names(key), rule.place_of(key));
    let mut section = rule.section(key);
    if !there {
        return None;
    }
    let before = context.problem_count();
    for (secret, instead) in [
        ("password", "password_file"),
        ("master_password", "master_password_file"),
        ("key", "key_file"),
        ("key_passphrase", "key_passphrase_file"),
    ] {
        section.refuse(
            secret,
            &format!("has no place in this file: put it into one of its own, and name that as {instead}"),
        );
    }
    let user = section.setting("user", text).unrecorded();
    let proof = proof(&mut section);
    let path = section.path.clone();
    drop(section);
    let user_is_missing = user.is_none().then_some("has no user");
    // What is wrong with a value is known already; what is missing may follow from it.
    if let Some(why) = user_is_missing.or(proof.as_ref().err().copied())
        && context.problem_count() == before
    {
        context.problem(place, &path, why);
    }
    let account = Account { user: user?.value.into(), proof: proof.ok()? };
    if let Err(why) = readable(&account.proof) {
        context.note(format!("{path}: {why}; until that is right its targets fail with no_credentials"));
    }
    Some(account)
}

fn file(section: &mut Section<'_>, context: &Context<'_>, key: &'static str) -> Option<PathBuf> {
    section.setting(key, |value| context.path(value)).unrecorded().map(|path| path.value)
}

fn esxi_proof(section: &mut Section<'_>) -> Result<Proof, &'static str> {
    let context = section.context;
    let password = file(section, context, "password_file").map(SecretSource::File);
    let key = file(section, context, "key_file");
    let passphrase = file(section, context, "key_passphrase_file").map(SecretSource::File);
    match (key, password) {
        (Some(file), password) => Ok(Proof::Key(KeySource { file, passphrase, password })),
        (None, Some(_)) if passphrase.is_some() => Err("has a key_passphrase_file, but no key_file"),
        (None, Some(password)) => Ok(Proof::Password(password)),
        (None, None) => Err("has neither password_file nor key_file"),
    }
}

fn vcenter_proof(section: &mut Section<'_>) -> Result<Proof, &'static str> {
    let context = section.context;
    let password = file(section, context, "password_file").map(SecretSource::File);
    let master = file(section, context, "master_password_file").map(SecretSource::File);
    match (password, master) {
        (Some(_), Some(_)) => Err("has password_file and master_password_file; name one of the two"),
        (Some(password), None) => Ok(Proof::Password(password)),
        (None, Some(master)) => Ok(Proof::MasterPassword(master)),
        (None, None) => Err("has neither password_file nor master_password_file"),
    }
}

fn readable(proof: &Proof) -> Result<(), String> {
    let secret = |source: &SecretSource| match source {
        SecretSource::Value(_) => Ok(()),
        SecretSource::File(path) => read_secret_file(path).map(drop),
    };
    match proof {
        Proof::Password(source) | Proof::MasterPassword(source) => secret(source),
        Proof::Key(key) => read_key_files(key).and_then(|()| key.password.as_ref().map_or(Ok(()), secret)),
    }
}
