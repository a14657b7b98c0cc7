//! New certificates for the keys that are there: a folder of `certs init` in, the same folder with more time out.

use std::path::Path;

use gaterail_cluster::tls::{Authority, CertFiles, Identity, Validity, date, is_name};

use super::make::{self, Keys};
use super::write;
use crate::error::CliError;
use crate::tls::refused;

/// Makes them, and says what is to be done with them.
pub fn renew(files: &CertFiles, hosts: &[String], days: u32) -> Result<String, CliError> {
    let _alone = write::alone(&files.folder)?;
    let ca = Authority::read(&files.ca()).map_err(refused)?;
    let router = Identity::read(&files.cert("router"), &files.key("router")).map_err(refused)?;
    let worker = Identity::read(&files.cert("worker"), &files.key("worker")).map_err(refused)?;
    let mut names = router.names_of_old(&ca).map_err(|error| {
        let cert = files.cert("router");
        CliError::Refused(format!("{} is not of the CA in this folder: {error}", cert.display()))
    })?;
    if let Some(name) = names.iter().find(|name| !is_name(name)) {
        let cert = files.cert("router").display().to_string();
        return Err(CliError::Refused(format!(
            "{cert} has the name {name:?}, which no new one can have: nothing was changed. Without --renew, and with --force, \
             gaterail certs init makes all of it anew"
        )));
    }
    names.extend(hosts.iter().filter(|host| !names.contains(host)).cloned().collect::<Vec<_>>());
    let keys = ["ca", "router", "worker"].map(|who| key(&files.key(who)));
    let [ca_key, router_key, worker_key] = keys;
    let keys = Keys::from_pem([&ca_key?, &router_key?, &worker_key?])?;
    let made = make::again(&keys, &names, days)?;
    let new = Authority::from_pem(made.ca.cert.as_bytes(), &files.ca()).map_err(refused)?;
    // Made elsewhere, or with the key of another: nobody who has this ca.pem would believe what that key signs.
    if !new.is_the_same_as(&ca) {
        return Err(CliError::Refused(format!(
            "{} was not made by gaterail certs init with {}, and nothing was changed: renew with what made it",
            files.ca().display(),
            files.key("ca").display()
        )));
    }
    let before = [&router, &worker].map(|identity| Validity::of(identity).ends);
    write::certificates(files, &made)?;
    Ok(format!(
        "In {}, until {} ({days} days), for the keys that were there:\n  \
         ca.pem      the same CA; who has the last ca.pem believes what it signs\n  \
         router.pem  the router, as {}; the last one ends on {}\n  \
         worker.pem  its workers; the last one ends on {}\n\n\
         What runs goes on with what it has read: start the router again, bring ca.pem and worker.pem to the workers and start \
         them again, one after the other and in any order.\n",
        files.folder.display(),
        date(made.ends),
        names.join(", "),
        date(before[0]),
        date(before[1])
    ))
}

fn key(file: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(file).map_err(CliError::io(format!("reading {}", file.display())))
}
