//! Errors in gRPC's codes, and the deadline that a client sets.

use std::time::Duration;

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::openai::{ApiError, ErrorKind};

/// The same refusal in gRPC's words. A stable word for programs and the time to come again are in the metadata.
pub fn status(error: &ApiError) -> Status {
    let code = match error.kind {
        ErrorKind::Invalid | ErrorKind::ContextLength | ErrorKind::Method => Code::InvalidArgument,
        ErrorKind::BadKey => Code::Unauthenticated,
        ErrorKind::Forbidden => Code::PermissionDenied,
        ErrorKind::NoSuchModel | ErrorKind::NoSuchRoute => Code::NotFound,
        ErrorKind::Timeout | ErrorKind::Deadline => Code::DeadlineExceeded,
        ErrorKind::BodyTooLarge | ErrorKind::HeadersTooLarge => Code::OutOfRange,
        ErrorKind::RateLimit | ErrorKind::Overloaded => Code::ResourceExhausted,
        ErrorKind::Draining | ErrorKind::Loading => Code::Unavailable,
        ErrorKind::Internal => Code::Internal,
    };
    let mut metadata = MetadataMap::new();
    let reason = error.kind.code().unwrap_or("invalid_argument");
    metadata.insert("reason", MetadataValue::from_static(reason));
    if let Some(wait) = error.retry_after {
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        metadata.insert("retry-after-ms", MetadataValue::from(ms));
    }
    Status::with_metadata(code, error.told(), metadata)
}

/// `grpc-timeout`: at most eight digits and a unit.
pub fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > 8 {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("999999999S", None),
            ("S", None),
            ("", None),
            ("1x", None),
            ("-1S", None),
        ] {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(timeout(&metadata), expected, "{text:?}");
        }
    }
}
