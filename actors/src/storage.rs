//! Object stores by their address: what checkpoints and data sets share.

use std::sync::Arc;

use object_store::ObjectStore;

/// What S3 does not answer is asked again for so long.
#[cfg(feature = "s3")]
const S3_PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// The scheme of an address, and what comes after it; `None` for a path of the file system.
pub(crate) fn scheme(at: &str) -> Option<(&str, &str)> {
    at.split_once("://")
}

/// The store behind `s3://bucket/prefix`: a bucket, or what is below a prefix of it. How to reach it stands in the
/// environment, as for Amazon's own tools.
///
/// # Errors
/// Another scheme, with what there is; an environment that does not say how to reach S3.
pub(crate) fn open(url: &str) -> Result<Arc<dyn ObjectStore>, String> {
    match scheme(url) {
        Some(("s3", rest)) => s3(url, rest),
        _ => Err("it is neither a path nor s3://bucket/prefix".to_owned()),
    }
}

#[cfg(feature = "s3")]
fn s3(url: &str, rest: &str) -> Result<Arc<dyn ObjectStore>, String> {
    use object_store::{RetryConfig, aws::AmazonS3Builder, path::Path, prefix::PrefixStore};

    // The HTTP client takes the process's; one that the program has chosen before stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A job that waits for its checkpoints or its data waits for this.
    let retry =
        RetryConfig { max_retries: 5, retry_timeout: S3_PATIENCE, ..RetryConfig::default() };
    let bucket = AmazonS3Builder::from_env().with_url(url).with_retry(retry).build();
    let bucket = bucket.map_err(|error| told(&error))?;
    let prefix = rest.split_once('/').map_or("", |(_, prefix)| prefix);
    let prefix = Path::parse(prefix).map_err(|error| error.to_string())?;
    Ok(Arc::new(PrefixStore::new(bucket, prefix)))
}

#[cfg(not(feature = "s3"))]
fn s3(_: &str, _: &str) -> Result<Arc<dyn ObjectStore>, String> {
    Err("this program was built without the feature `s3` of footlight".to_owned())
}

/// An error in one line, with what is beneath it: the file system's word comes last.
pub(crate) fn told(error: &object_store::Error) -> String {
    let mut told = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let why = error.to_string();
        if !told.contains(&why) {
            told = format!("{told}: {why}");
        }
        cause = error.source();
    }
    told.replace('\n', " ")
}
