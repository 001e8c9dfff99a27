//! The accounts of the environment, for all targets that the section `credentials` names none for.

use super::section::{At, By, Context};
use super::{CriticalServiceConfig, OverallStateConfig};
use crate::accounts::{
    Account, AccountsConfig, CredentialRule, KeySource, Proof, Secret, SecretSource, read_key_files,
    read_secret_file,
};
use std::path::PathBuf;

/// Where a collector is on, the account that it uses is needed, here or in a rule.
pub(super) fn resolve(
    context: &Context<'_>,
    rules: Vec<CredentialRule>,
    (overall_state, critical_service): (Option<&At<OverallStateConfig>>, Option<&At<CriticalServiceConfig>>),
) -> AccountsConfig {
    let vcenter = account(context, "VCENTER_USER", vcenter_proof(context));
    let esxi = account(context, "ESXI_USER", esxi_proof(context));
    let overall_state = overall_state.filter(|_| rules.iter().all(|rule| rule.vcenter.is_none()));
    let critical_service = critical_service.filter(|_| rules.iter().all(|rule| rule.esxi.is_none()));
    if let (None, Some(collector)) = (&vcenter, overall_state) {
        missing(context, collector, "VCENTER_USER", "VCENTER_PASSWORD or VCENTER_MPW");
    }
    if let (None, Some(collector)) = (&esxi, critical_service) {
        missing(context, collector, "ESXI_USER", "ESXI_PASSWORD or ESXI_KEY_FILE");
    }
    AccountsConfig { rules, esxi, vcenter }
}

fn missing<T>(context: &Context<'_>, collector: &At<T>, user: &str, secrets: &str) {
    let user = if context.variable(user).is_some() { String::new() } else { format!("{user} and ") };
    let off = format!("{}.enabled: false", collector.key);
    let message = format!(
        "is on, but its account is missing: set {user}{secrets} (passwords also as …_FILE), \
         or switch it off with {off}"
    );
    context.problem_at(collector, message);
}

fn account(context: &Context<'_>, user: &str, proof: Option<Proof>) -> Option<Account> {
    let name = context.variable(user);
    if let Some(name) = &name {
        context.record(user, name.clone(), By::Variable(user.to_owned()));
    }
    Some(Account { user: name?.into(), proof: proof? })
}

fn vcenter_proof(context: &Context<'_>) -> Option<Proof> {
    let password = secret(context, "VCENTER_PASSWORD").map(Proof::Password);
    let master = secret(context, "VCENTER_MPW").map(Proof::MasterPassword);
    master.or(password)
}

fn esxi_proof(context: &Context<'_>) -> Option<Proof> {
    let password = secret(context, "ESXI_PASSWORD").map(Proof::Password);
    let Some(path) = context.variable("ESXI_KEY_FILE").map(PathBuf::from) else { return password };
    let by = By::Variable("ESXI_KEY_FILE".to_owned());
    context.record("ESXI_KEY_FILE", path.display().to_string(), by.clone());
    let passphrase = secret(context, "ESXI_KEY_PASSPHRASE");
    let password = match password {
        Some(Proof::Password(password)) => Some(password),
        _ => None,
    };
    let key = KeySource { file: path, passphrase, password };
    if let Err(why) = read_key_files(&key) {
        context.problem(by, "", why);
    }
    Some(Proof::Key(key))
}

/// A secret as `NAME` or `NAME_FILE`.
fn secret(context: &Context<'_>, name: &str) -> Option<SecretSource> {
    let file_name = format!("{name}_FILE");
    let value = context.variable(name);
    let file = context.variable(&file_name).map(PathBuf::from);
    let by = |name: &str| By::Variable(name.to_owned());
    match (value, file) {
        (None, None) => None,
        (Some(value), None) => {
            context.record(name, "***".to_owned(), by(name));
            Some(SecretSource::Value(Secret::new(value)))
        }
        (None, Some(path)) => {
            if let Err(why) = read_secret_file(&path) {
                context.problem(by(&file_name), "", why);
            }
            context.record(&file_name, path.display().to_string(), by(&file_name));
            Some(SecretSource::File(path))
        }
        (Some(_), Some(path)) => {
            context.problem(by(&file_name), "", format!("{name} is set, too; set one of the two"));
            Some(SecretSource::File(path))
        }
    }
}
