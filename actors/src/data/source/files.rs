//! The bytes of a file, local or in an object store.

use std::{fs::File, io::Read, path::Path, sync::Arc};

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, path::Path as Key};
use tokio::runtime::Handle;

use super::{DataError, name_of};
use crate::storage;

/// The most that is read into memory of one file: 4 GiB.
pub const MAX_BYTES: u64 = 4 << 30;

/// Whether this is the address of an object, and no path.
pub(super) fn is_remote(at: &Path) -> bool {
    storage::scheme(&name_of(at)).is_some()
}

/// All bytes of a file or object. Blocks.
///
/// # Errors
/// [`DataError::Read`]; [`DataError::TooLarge`] for more than [`MAX_BYTES`], before anything is allocated.
pub(super) fn read(at: &Path) -> Result<Bytes, DataError> {
    read_if_there(at, MAX_BYTES)?.ok_or_else(|| DataError::Read {
        at: name_of(at),
        why: "there is nothing of that name".to_owned(),
    })
}

/// The same, with a limit of the caller's; `None` if there is nothing of that name.
pub(super) fn read_if_there(at: &Path, limit: u64) -> Result<Option<Bytes>, DataError> {
    let name = name_of(at);
    if is_remote(at) {
        let (store, key) = remote(&name)?;
        let handle = Handle::try_current()
            .map_err(|_| DataError::Read { at: name.clone(), why: "no runtime".to_owned() })?;
        return handle.block_on(fetch(store, &key, &name, limit));
    }
    if !at.exists() {
        return Ok(None);
    }
    let (file, bytes) = open_local(at)?;
    if bytes > limit {
        return Err(DataError::TooLarge { at: name, bytes, limit });
    }
    let mut content = Vec::with_capacity(bytes as usize);
    file.take(bytes)
        .read_to_end(&mut content)
        .map_err(|error| DataError::Read { at: name, why: error.to_string() })?;
    Ok(Some(content.into()))
}

/// A local file and its length. What is no file is refused: a pipe would be waited for.
pub(super) fn open_local(at: &Path) -> Result<(File, u64), DataError> {
    let wrong = |why: String| DataError::Read { at: name_of(at), why };
    let about = at.metadata().map_err(|error| wrong(error.to_string()))?;
    if !about.is_file() {
        return Err(wrong("it is not a file".to_owned()));
    }
    let file = File::open(at).map_err(|error| wrong(error.to_string()))?;
    Ok((file, about.len()))
}

/// The store of an object, and its key there.
fn remote(name: &str) -> Result<(Arc<dyn ObjectStore>, Key), DataError> {
    let wrong = |why: String| DataError::Read { at: name.to_owned(), why };
    let Some((scheme, rest)) = storage::scheme(name) else {
        return Err(wrong("it is no address".to_owned()));
    };
    let (bucket, key) =
        rest.split_once('/').ok_or_else(|| wrong("it names no object of the bucket".to_owned()))?;
    let store = storage::open(&format!("{scheme}://{bucket}")).map_err(wrong)?;
    let key = Key::parse(key).map_err(|error| wrong(error.to_string()))?;
    Ok((store, key))
}

async fn fetch(
    store: Arc<dyn ObjectStore>,
    key: &Key,
    name: &str,
    limit: u64,
) -> Result<Option<Bytes>, DataError> {
    let wrong = |error: &object_store::Error| DataError::Read {
        at: name.to_owned(),
        why: storage::told(error),
    };
    let found = match store.get(key).await {
        Ok(found) => found,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(wrong(&error)),
    };
    let bytes = found.meta.size;
    if bytes > limit {
        return Err(DataError::TooLarge { at: name.to_owned(), bytes, limit });
    }
    Ok(Some(found.bytes().await.map_err(|error| wrong(&error))?))
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn an_object_is_read_and_one_that_is_missing_or_too_large_is_told() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let key = Key::from("dir/file");
        store.put(&key, Bytes::from_static(b"abc").into()).await.unwrap();
        let of = async |key: &str, limit| {
            fetch(store.clone(), &Key::from(key), "s3://b/dir/file", limit).await
        };
        assert_eq!(of("dir/file", 3).await.unwrap().unwrap(), "abc");
        assert!(of("dir/other", 3).await.unwrap().is_none());
        let error = of("dir/file", 2).await.unwrap_err().to_string();
        assert_eq!(error, "s3://b/dir/file takes 3 bytes, and at most 2 are read into memory");
    }

    #[test]
    fn what_is_no_file_or_no_known_store_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("it is not a file"), "{error}");
        let error = read(&dir.path().join("x")).unwrap_err().to_string();
        assert!(error.ends_with("there is nothing of that name"), "{error}");
        let error = read(Path::new("ftp://host/file")).unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot read ftp://host/file: it is neither a path nor s3://bucket/prefix"
        );
        let error = read(Path::new("s3://bucket")).unwrap_err().to_string();
        assert_eq!(error, "cannot read s3://bucket: it names no object of the bucket");
    }
}
