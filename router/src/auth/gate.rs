//! The decision at the door: which key, whose, and whether there is still room for this request.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use subtle::ConditionallySelectable;

use super::bucket::Bucket;
use super::file::{KeyFile, KeyFileError, Stamp};
use super::key::{KeyHash, KeyLimits, KeyRecord};
use crate::api::TenantId;
use crate::openai::{ApiError, ErrorKind};
use crate::serving::room::Sender;

/// The door of a server. Closed to all without a key, unless there never was one.
pub struct Gate {
    /// Keys of the command line; they have no limits.
    fixed: Vec<Arc<ActiveKey>>,
    file: Option<KeyFile>,
    state: RwLock<State>,
}

struct State {
    stamp: Option<Stamp>,
    keys: Vec<Arc<ActiveKey>>,
    /// Keys were asked for: from then on nobody comes in without one, even when the last is revoked.
    closed: bool,
}

/// A key that opens, and what it has used.
pub struct ActiveKey {
    record: KeyRecord,
    used: Arc<Used>,
}

/// What a key has used, whatever became of its limits since.
struct Used {
    usage: Mutex<Usage>,
    streams: AtomicU32,
}

struct Usage {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

/// Who asks.
#[derive(Clone)]
pub struct Caller {
    pub tenant: TenantId,
    /// Other tenants have keys, too.
    pub shares_queue: bool,
    /// `None` where the door is open.
    key: Option<Arc<ActiveKey>>,
}

/// One of the requests that a key may have at once; free again when dropped.
#[must_use]
pub struct StreamPermit(Option<Arc<ActiveKey>>);

/// Tokens that were taken in advance; given back when dropped, unless settled before.
#[must_use]
pub struct TokenCharge {
    key: Option<Arc<ActiveKey>>,
    reserved: u64,
}

impl Gate {
    /// A door with the keys of `file`, if there is one, and of `fixed`. Without either it is open.
    pub fn new(file: Option<KeyFile>, fixed: &[String]) -> Result<Gate, KeyFileError> {
        // An empty key would open to everybody who sends an empty one.
        let fixed = fixed.iter().filter(|text| !text.trim().is_empty()).enumerate();
        let fixed = fixed.map(|(index, text)| ActiveKey::fixed(index, text)).collect();
        let gate =
            Gate { fixed, file, state: RwLock::new(State { stamp: None, keys: Vec::new(), closed: false }) };
        gate.reload()?;
        Ok(gate)
    }

    /// Whether anybody may come in.
    pub fn is_open(&self) -> bool {
        self.fixed.is_empty() && !self.read().closed
    }

    /// Looks whether the file has changed, and takes what it says now. A file that cannot be read changes nothing.
    pub fn reload(&self) -> Result<bool, KeyFileError> {
        let Some(file) = &self.file else { return Ok(false) };
        let stamp = file.stamp();
        if self.read().stamp == stamp && stamp.is_some() {
            return Ok(false);
        }
        let records = file.load()?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.closed |= !records.is_empty();
        let active = records.into_iter().filter(|record| record.revoked.is_none());
        let keys = active.map(|record| state.key_for(record)).collect();
        state.keys = keys;
        state.stamp = stamp;
        Ok(true)
    }

    /// Who holds this `Authorization` header.
    pub fn authenticate(&self, authorization: Option<&str>) -> Result<Caller, ApiError> {
        if self.is_open() {
            return Ok(Caller { tenant: TenantId::anonymous(), shares_queue: false, key: None });
        }
        let refuse = |message: &str| Err(ApiError::new(ErrorKind::BadKey, message));
        let Some(authorization) = authorization else {
            return refuse("no API key was given; send the header Authorization: Bearer KEY");
        };
        let Some((scheme, key)) = authorization.split_once(' ') else {
            return refuse("the Authorization header has to be: Bearer KEY");
        };
        if !scheme.eq_ignore_ascii_case("bearer") || key.trim().is_empty() {
            return refuse("the Authorization header has to be: Bearer KEY");
        }
        match self.find(&KeyHash::of(key.trim())) {
            Some(key) => Ok(self.caller(key)),
            None => refuse("the API key is not valid"),
        }
    }

    fn caller(&self, key: Arc<ActiveKey>) -> Caller {
        let tenant = TenantId(key.record.tenant.as_str().into());
        let state = self.read();
        let shares_queue =
            self.fixed.iter().chain(&state.keys).any(|other| other.record.tenant != key.record.tenant);
        Caller { tenant, shares_queue, key: Some(key) }
    }

    /// Every key is looked at, whichever fits: how long it takes says nothing.
    fn find(&self, hash: &KeyHash) -> Option<Arc<ActiveKey>> {
        let state = self.read();
        let mut found = u32::MAX;
        for (index, key) in self.fixed.iter().chain(&state.keys).enumerate() {
            found.conditional_assign(&(index as u32), key.record.sha256.matches(hash));
        }
        self.fixed.iter().chain(&state.keys).nth(found as usize).cloned()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A key that was there before keeps what it has used, whatever its record says now.
    fn key_for(&self, record: KeyRecord) -> Arc<ActiveKey> {
        match self.keys.iter().find(|key| key.record.sha256 == record.sha256) {
            Some(key) if key.record == record => key.clone(),
            Some(key) => Arc::new(key.changed(record)),
            None => Arc::new(ActiveKey::new(record)),
        }
    }
}

impl ActiveKey {
    fn new(record: KeyRecord) -> ActiveKey {
        let usage = Mutex::new(Usage { requests: None, tokens: None });
        let used = Used { usage, streams: AtomicU32::new(0) };
        ActiveKey { record, used: Arc::new(used) }.limited()
    }

    fn changed(&self, record: KeyRecord) -> ActiveKey {
        ActiveKey { record, used: self.used.clone() }.limited()
    }

    /// Counts by the record's limits from now on.
    fn limited(self) -> ActiveKey {
        let now = Instant::now();
        let KeyLimits { requests_per_minute, tokens_per_minute, .. } = self.record.limits;
        {
            let mut usage = self.usage();
            limit(&mut usage.requests, requests_per_minute.map(u64::from), now);
            limit(&mut usage.tokens, tokens_per_minute, now);
        }
        self
    }

    /// Keys of the command line are strangers to each other: each is a tenant, by a name that no key of a file can have.
    fn fixed(index: usize, text: &str) -> Arc<ActiveKey> {
        let number = index + 1;
        Arc::new(ActiveKey::new(KeyRecord {
            id: format!("flag-{number}"),
            sha256: KeyHash::of(text),
            tenant: format!("api-key:{number}"),
            created: 0,
            revoked: None,
            // Whoever starts the server gives it.
            operator: true,
            limits: KeyLimits::default(),
        }))
    }

    fn usage(&self) -> std::sync::MutexGuard<'_, Usage> {
        self.used.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A limit that was there goes on from what was used; a new one begins full.
fn limit(bucket: &mut Option<Bucket>, per_minute: Option<u64>, now: Instant) {
    match (&mut *bucket, per_minute) {
        (Some(bucket), Some(rate)) => bucket.set_rate(rate, now),
        (_, rate) => *bucket = rate.map(|rate| Bucket::new(rate, now)),
    }
}

impl Caller {
    /// Whose room a body takes: the tenant's, or where nobody says who it is the address's.
    pub fn sender(&self, address: Option<IpAddr>) -> Sender {
        match address.filter(|_| self.key.is_none()) {
            Some(address) => Sender::at(address),
            None => Sender::Tenant(self.tenant.clone()),
        }
    }

    /// What the key is called in logs.
    pub fn key_id(&self) -> Option<&str> {
        self.key.as_ref().map(|key| key.record.id.as_str())
    }

    /// Whether it may change how the server works, and not only ask: a key of the command line, or one that was made for it. Where
    /// there are no keys, only this machine comes in.
    pub fn is_operator(&self) -> bool {
        self.key.as_ref().is_none_or(|key| key.record.operator)
    }

    /// Counts one request.
    pub fn count_request(&self, now: Instant) -> Result<(), ApiError> {
        let Some(key) = &self.key else { return Ok(()) };
        let Some(bucket) = &mut key.usage().requests else { return Ok(()) };
        let limit = key.record.limits.requests_per_minute.unwrap_or(0);
        bucket.take(1, now).map_err(|wait| {
            let message = format!("the limit of {limit} requests a minute is reached");
            ApiError::new(ErrorKind::RateLimit, message).retry_after(wait)
        })
    }

    /// One more request that is being answered.
    pub fn open_stream(&self) -> Result<StreamPermit, ApiError> {
        let Some(key) = &self.key else { return Ok(StreamPermit(None)) };
        let max = key.record.limits.streams.unwrap_or(u32::MAX);
        let more = |streams: u32| (streams < max).then_some(streams + 1);
        match key.used.streams.fetch_update(Relaxed, Relaxed, more) {
            Ok(_) => Ok(StreamPermit(Some(key.clone()))),
            Err(_) => {
                let message = format!("the limit of {max} requests at once is reached");
                Err(ApiError::new(ErrorKind::RateLimit, message)
                    .retry_after(std::time::Duration::from_secs(1)))
            }
        }
    }

    /// Takes the tokens that a request may use.
    pub fn charge_tokens(&self, tokens: u64, now: Instant) -> Result<TokenCharge, ApiError> {
        let free = TokenCharge { key: None, reserved: 0 };
        let Some(key) = &self.key else { return Ok(free) };
        let limit = key.record.limits.tokens_per_minute.unwrap_or(0);
        match &mut key.usage().tokens {
            None => Ok(free),
            Some(bucket) => match bucket.take(tokens, now) {
                Ok(()) => Ok(TokenCharge { key: Some(key.clone()), reserved: tokens }),
                Err(wait) => {
                    let message = format!(
                        "the limit of {limit} tokens a minute is reached; this request may take {tokens}"
                    );
                    Err(ApiError::new(ErrorKind::RateLimit, message).retry_after(wait))
                }
            },
        }
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        if let Some(key) = &self.0 {
            key.used.streams.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for TokenCharge {
    /// A request that was refused after it was charged has used nothing.
    fn drop(&mut self) {
        self.settle(0, Instant::now());
    }
}

impl TokenCharge {
    /// The request is over and took `used` tokens.
    pub fn settle(&mut self, used: u64, now: Instant) {
        let Some(key) = self.key.take() else { return };
        if let Some(bucket) = &mut key.usage().tokens {
            bucket.give_back(self.reserved as f64 - used as f64, now);
        }
    }
}
