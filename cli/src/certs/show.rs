//! What is in a folder of certificates, as those who judge a handshake see it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use gaterail_cluster::tls::{Authority, CertFiles, Identity, Members, Validity, date};

use crate::error::CliError;
use crate::terminal;
use crate::tls::refused;

pub fn text(files: &CertFiles) -> Result<String, CliError> {
    let ca = Authority::read(&files.ca()).map_err(refused)?;
    let mut lines = vec![line(&files.ca(), Validity::of_authority(&ca), "the CA")];
    lines.extend(open_key(&files.key("ca")));
    for who in ["router", "worker"] {
        let (cert, key) = (files.cert(who), files.key(who));
        // Machines of workers have no router's.
        if !cert.exists() && !key.exists() {
            continue;
        }
        let identity = Identity::read(&cert, &key).map_err(refused)?;
        let is = match who {
            "router" => match identity.names(&ca) {
                Ok(names) => format!("the router, as {}", names.join(", ")),
                Err(error) => format!("no worker would believe it: {error}"),
            },
            _ => match identity.is_of(&Members::workers(ca.clone())) {
                Ok(()) => "workers".to_string(),
                Err(error) => format!("no router would believe it: {error}"),
            },
        };
        lines.push(line(&cert, Validity::of(&identity), &is));
        lines.extend(open_key(&key));
    }
    Ok(lines.concat())
}

fn line(file: &Path, validity: Validity, is: &str) -> String {
    let when = match validity.has_ended() {
        true => format!("ended on {}", date(validity.ends)),
        false => format!("until {}, {} days", date(validity.ends), validity.days_left()),
    };
    format!("{}  {when}: {}\n", file.display(), terminal::visible(is))
}

/// A word about a key that others can read.
fn open_key(key: &Path) -> Option<String> {
    let mode = std::fs::metadata(key).ok()?.permissions().mode() & 0o777;
    let key = key.display();
    (mode & 0o077 != 0).then(|| format!("{key}  can be read by others (mode {mode:o}): chmod 600 {key}\n"))
}
