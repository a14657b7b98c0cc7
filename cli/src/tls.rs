//! Flags that name certificates, of routers and of workers: in, files; out, what a handshake takes, and a word in time before it ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gaterail_cluster::tls::{
    Authority, CertFiles, ClientTls, Identity, Members, Purpose, ServerTls, TlsError, Validity, date,
};

use crate::error::CliError;
use crate::terminal;

/// A certificate that ends sooner is worth a word at every start, and once a day.
const WARN_DAYS: u64 = 30;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Files as the command line names them.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// A folder of `gaterail certs init`; the others say what comes from elsewhere.
    pub certs: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub ca: Option<PathBuf>,
    /// What workers are called by a CA that is not of `gaterail certs init`.
    pub worker_name: Option<String>,
}

impl TlsFiles {
    /// What a port shows and asks for, where its flags begin with `flag`; `None` where nobody named a file.
    pub fn server(&self, flag: &str, protocol: &[u8]) -> Result<Option<ServerTls>, CliError> {
        let ca = self.ca.clone().or_else(|| Some(CertFiles::new(self.certs.as_ref()?).ca()));
        let (cert, key) = match self.pair("router") {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) if ca.is_none() => return Ok(None),
            _ => {
                let why = format!("TLS takes a certificate and its key: --{flag}-cert and --{flag}-key");
                return Err(CliError::Usage(why));
            }
        };
        let clients = ca.map(|file| self.members(&file)).transpose()?;
        let identity = Identity::read(&cert, &key).map_err(refused)?;
        check(&identity, Purpose::Server)?;
        ServerTls::new(identity, clients.as_ref(), protocol).map(Some).map_err(refused)
    }

    /// The files of a certificate and its key, of `router` or `worker`.
    fn pair(&self, who: &str) -> (Option<PathBuf>, Option<PathBuf>) {
        let of_folder = self.certs.as_ref().map(CertFiles::new);
        let of_folder = of_folder.map(|files| (files.cert(who), files.key(who))).unzip();
        (self.cert.clone().or(of_folder.0), self.key.clone().or(of_folder.1))
    }

    /// The certificate that `router` or `worker` shows, for a word before it ends.
    pub fn shown(&self, who: &str) -> Option<Shown> {
        let (cert, key) = self.pair(who);
        let identity = Identity::read(&cert?, &key?).ok()?;
        Some(Shown { file: identity.file().to_path_buf(), validity: Validity::of(&identity) })
    }

    /// Whose certificates open a port: nobody's without a worker's name.
    fn members(&self, ca: &Path) -> Result<Members, CliError> {
        let ca = Authority::read(ca).map_err(refused)?;
        match &self.worker_name {
            None => Ok(Members::workers(ca)),
            Some(name) => Members::named(ca, name).ok_or_else(|| {
                CliError::Usage(format!(
                    "--cluster-worker-name: {name:?} is no name that a certificate can have"
                ))
            }),
        }
    }

    /// Whom a worker believes, and what it shows; `None` where nobody named a file.
    pub fn client(&self) -> Result<Option<ClientTls>, CliError> {
        let files = self.certs.as_ref().map(CertFiles::new);
        let Some(ca) = self.ca.clone().or_else(|| files.as_ref().map(CertFiles::ca)) else {
            return match (&self.cert, &self.key) {
                (None, None) => Ok(None),
                _ => Err(CliError::Usage(
                    "a certificate is shown over TLS only: name the router's CA with --tls-ca FILE"
                        .to_string(),
                )),
            };
        };
        // A folder without one is a worker's that joins by a token.
        let of_folder = files.map(|files| (files.cert("worker"), files.key("worker")));
        let of_folder = of_folder.filter(|(cert, key)| cert.exists() || key.exists()).unzip();
        let identity = match (self.cert.clone().or(of_folder.0), self.key.clone().or(of_folder.1)) {
            (Some(cert), Some(key)) => {
                let identity = Identity::read(&cert, &key).map_err(refused)?;
                check(&identity, Purpose::Client)?;
                Some(identity)
            }
            (None, None) => None,
            _ => return Err(CliError::Usage("--tls-cert and --tls-key go together".to_string())),
        };
        let ca = Authority::read(&ca).map_err(refused)?;
        ClientTls::new(&ca, identity).map(Some).map_err(refused)
    }
}

/// A certificate that is shown for as long as the program runs.
#[derive(Clone, Debug)]
pub struct Shown {
    file: PathBuf,
    validity: Validity,
}

impl Shown {
    /// What is to be said of it; nothing while there is time.
    fn word(&self) -> Option<String> {
        let (cert, ends, days) = (self.file.display(), date(self.validity.ends), self.validity.days_left());
        if self.validity.has_ended() {
            return Some(format!("the certificate in {cert} ended on {ends}: nobody new is let in. {RENEW}"));
        }
        (days < WARN_DAYS)
            .then(|| format!("the certificate in {cert} ends on {ends}, in {days} days. {RENEW}"))
    }
}

const RENEW: &str = "Get a new one from whoever made it (`gaterail certs init DIR --renew` for its own), and start this again with it";

/// Says once a day which certificates end soon, as a start does.
pub async fn watch(shown: Vec<Shown>, note: impl Fn(String)) {
    watch_every(DAY, &shown, note).await;
}

async fn watch_every(time: Duration, shown: &[Shown], note: impl Fn(String)) {
    loop {
        tokio::time::sleep(time).await;
        shown.iter().filter_map(Shown::word).for_each(&note);
    }
}

pub fn refused(error: TlsError) -> CliError {
    let hint = match &error {
        TlsError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            "; `gaterail certs init DIR` makes certificates"
        }
        _ => "",
    };
    CliError::Refused(format!("{error}{hint}"))
}

/// A certificate that has ended, has not begun or is for something else is no use to anybody.
fn check(identity: &Identity, purpose: Purpose) -> Result<(), CliError> {
    let (cert, validity) = (identity.file().display(), Validity::of(identity));
    let (begins, ends) = (date(validity.begins), date(validity.ends));
    if validity.has_ended() {
        return Err(CliError::Refused(format!(
            "the certificate in {cert} ended on {ends}: get a new one from whoever made it (gaterail certs init DIR --renew for its own, where its CA is; then bring ca.pem and worker*.pem to the workers)"
        )));
    }
    if !validity.has_begun() {
        return Err(CliError::Refused(format!(
            "the certificate in {cert} begins on {begins}: is this machine's clock right?"
        )));
    }
    if !identity.is_for(purpose) {
        let whose = match purpose {
            Purpose::Server => "no server's: a router shows router.pem",
            Purpose::Client => "no client's: a worker shows worker.pem",
        };
        return Err(CliError::Refused(format!("the certificate in {cert} is {whose}")));
    }
    let shown = Shown { file: identity.file().to_path_buf(), validity };
    if let Some(word) = shown.word() {
        terminal::note(&format!("gaterail: {word}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn what_ends_soon_is_said_again_and_again() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let ends_in = |name: &str, days: i64| Shown {
            file: name.into(),
            validity: Validity { begins: 0, ends: now.saturating_add_signed(days * 24 * 3600 + 60) },
        };
        let shown = [ends_in("long.pem", 30), ends_in("soon.pem", 29), ends_in("past.pem", -2)];
        let (said, heard) = channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a clock");
        let count = std::cell::Cell::new(0);
        let forever = watch_every(Duration::from_millis(1), &shown, |line| {
            said.send(line).expect("heard");
            count.set(count.get() + 1);
        });
        let enough = async {
            while count.get() < 4 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        runtime.block_on(async {
            tokio::select! {
                () = forever => {}
                done = tokio::time::timeout(Duration::from_secs(60), enough) => done.expect("again and again"),
            }
        });
        let lines: Vec<String> = heard.try_iter().collect();
        assert!(lines.len() >= 4 && lines.len().is_multiple_of(2), "{lines:?}");
        for pair in lines.chunks(2) {
            assert!(pair[0].contains("soon.pem") && pair[0].contains("in 29 days"), "{pair:?}");
            assert!(pair[1].contains("past.pem") && pair[1].contains("ended on"), "{pair:?}");
        }
    }
}
