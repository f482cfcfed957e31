//! Join tokens: what a new node shows to be let in, once.
//!
//! ```text
//! FL1 - worker - <base32 of SHA-256 of the authority's certificate> - <base32 of a secret of 16 bytes>
//! ```
//!
//! The hash tells the joiner whom to believe, the secret tells the cluster whom to let in. The
//! secret itself never leaves the joiner: it sends the secret's hash, by which the cluster finds the
//! token, and a proof (an HMAC of its request). Whoever passes the request on learns nothing that
//! would let another node in.

use std::{convert::Infallible, fmt, fs::File, io::Read, path::PathBuf, str::FromStr};

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use ring::{
    digest::{SHA256, digest},
    hmac,
    rand::{SecureRandom, SystemRandom},
};

use super::{Role, TrustError, peer::UnknownRole};

const PREFIX: &str = "FL1";
const HASH: usize = 32;
const SECRET: usize = 16;
/// A token has some 90 characters; a file that holds one has hardly more, in bytes.
const MAX_FILE: u64 = 4096;
const EXAMPLE: &str = "`footlight token create --role worker --ttl 1h --node HOST:PORT` makes one";

/// The SHA-256 of an authority's certificate (DER): names a cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthorityHash([u8; HASH]);

impl AuthorityHash {
    /// That of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        let mut hash = [0; HASH];
        hash.copy_from_slice(digest(&SHA256, certificate).as_ref());
        AuthorityHash(hash)
    }
}

impl fmt::Display for AuthorityHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for AuthorityHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A join token. `Display` writes it out, `Debug` keeps its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    role: Role,
    authority: AuthorityHash,
    secret: [u8; SECRET],
}

/// Why a text is no token. Says which part is wrong and never repeats the text: it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It does not begin as one.
    #[error("it does not begin with `FL1-`: {EXAMPLE}")]
    Prefix,
    /// It does not have four parts.
    #[error("it has {0} parts and not four, FL1-ROLE-AUTHORITY-SECRET: copy it whole")]
    Parts(usize),
    /// Its second part.
    #[error("its second part is no role: {0}")]
    Role(#[from] UnknownRole),
    /// Its third part.
    #[error(
        "its third part, the hash of the cluster's authority, is {}: without it a stranger could \
         play the cluster; copy the token whole", .0.found(HASH)
    )]
    Authority(Base32),
    /// Its fourth part.
    #[error("its fourth part, the secret, is {}: copy the token whole", .0.found(SECRET))]
    Secret(Base32),
    /// The file that was named instead.
    #[error("the file {path} can't be read: {why}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
}

/// What is wrong with a part in base32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base32 {
    /// It is not there.
    Missing,
    /// It has characters that base32 does not have, or too few or too many.
    Invalid,
    /// It stands for so many bytes.
    Length(usize),
}

impl Base32 {
    fn found(self, wanted: usize) -> String {
        match self {
            Base32::Missing => "missing".to_owned(),
            Base32::Invalid => "no base32 (letters A to Z and digits 2 to 7)".to_owned(),
            Base32::Length(bytes) => format!("{bytes} bytes long and not {wanted}"),
        }
    }
}

fn part<const N: usize>(text: &str) -> Result<[u8; N], Base32> {
    if text.is_empty() {
        return Err(Base32::Missing);
    }
    let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes());
    let bytes = bytes.map_err(|_| Base32::Invalid)?;
    <[u8; N]>::try_from(bytes).map_err(|bytes| Base32::Length(bytes.len()))
}

impl Token {
    /// A new token with a secret from the operating system.
    ///
    /// # Errors
    /// [`TrustError::Issue`] if the system has no randomness to give.
    pub fn new(role: Role, authority: AuthorityHash) -> Result<Self, TrustError> {
        let mut secret = [0; SECRET];
        SystemRandom::new().fill(&mut secret).map_err(|_| TrustError::Issue {
            what: "a token",
            why: "the operating system gave no random numbers".to_owned(),
        })?;
        Ok(Token { role, authority, secret })
    }

    /// The role that it gives.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The cluster that it belongs to.
    pub fn authority(&self) -> AuthorityHash {
        self.authority
    }

    /// What names it without giving it away.
    pub fn id(&self) -> TokenId {
        let hash = digest(&SHA256, &self.secret);
        TokenId(HEXLOWER.encode(hash.as_ref()))
    }

    /// What the cluster keeps to check proofs by.
    pub(crate) fn key(&self) -> ProofKey {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        let mut bytes = [0; HASH];
        bytes.copy_from_slice(hmac::sign(&key, b"footlight join").as_ref());
        ProofKey(bytes)
    }
}

/// Proves the knowledge of a token's secret. Whoever has it can use the token.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ProofKey([u8; HASH]);

impl ProofKey {
    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }

    pub(crate) fn prove(&self, request: &[u8]) -> Vec<u8> {
        hmac::sign(&self.key(), request).as_ref().to_vec()
    }

    /// Whether a proof is one for this request; in constant time.
    pub(crate) fn is_proof(&self, request: &[u8], proof: &[u8]) -> bool {
        hmac::verify(&self.key(), request, proof).is_ok()
    }
}

impl fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProofKey")
    }
}

/// Names a token: the SHA-256 of its secret, in hexadecimal. No secret.
#[derive(
    Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize,
)]
pub struct TokenId(String);

impl TokenId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is what [`Token::id`] gives: anything may come from a peer.
    pub(crate) fn is_valid(&self) -> bool {
        self.0.len() == 2 * HASH && HEXLOWER.decode(self.0.as_bytes()).is_ok()
    }

    /// Reads an id as it is written.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(TokenId(text.to_owned())).filter(TokenId::is_valid)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Token { role, authority, secret } = self;
        write!(f, "{PREFIX}-{role}-{authority}-{}", BASE32_NOPAD.encode(secret))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{}-{}-…", self.role, self.authority)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = text.trim().split('-').collect();
        if parts.first() != Some(&PREFIX) {
            return Err(TokenError::Prefix);
        }
        let &[_, role, authority, secret] = parts.as_slice() else {
            return Err(TokenError::Parts(parts.len()));
        };
        Ok(Token {
            role: role.parse()?,
            authority: AuthorityHash(part(authority).map_err(TokenError::Authority)?),
            secret: part(secret).map_err(TokenError::Secret)?,
        })
    }
}

/// A token as an option gives it: the token, or `@FILE` with the token in it.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSource(String);

impl TokenSource {
    /// The token.
    ///
    /// # Errors
    /// [`TokenError`]: which part of it is wrong, or that the file can't be read.
    pub fn read(&self) -> Result<Token, TokenError> {
        let Some(path) = self.0.strip_prefix('@') else { return self.0.parse() };
        let path = PathBuf::from(path);
        let mut text = String::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
            .map_err(|error| TokenError::File { path, why: error.to_string() })?;
        text.parse()
    }
}

impl FromStr for TokenSource {
    type Err = Infallible;

    /// Takes any text: an error of the command line's own would show it.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(TokenSource(text.trim().to_owned()))
    }
}

impl From<&Token> for TokenSource {
    fn from(token: &Token) -> Self {
        TokenSource(token.to_string())
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSource")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token::new(Role::Worker, AuthorityHash::of(b"certificate")).unwrap()
    }

    #[test]
    fn a_token_reads_back_as_it_was_written_in_either_case_and_with_space_around() {
        let token = token();
        let text = token.to_string();
        assert_eq!(text.parse::<Token>().unwrap(), token);
        let (head, tail) = text.split_at("FL1-worker-".len());
        let lower = format!(" {head}{}\n", tail.to_lowercase());
        assert_eq!(lower.parse::<Token>().unwrap(), token);
        assert_ne!(token.id(), Token::new(Role::Worker, token.authority).unwrap().id());
        assert!(token.id().is_valid());
    }

    #[test]
    fn what_is_wrong_with_a_token_is_said_part_by_part_and_the_secret_never() {
        let text = token().to_string();
        let [_, _, hash, secret] = text.split('-').collect::<Vec<_>>()[..] else { panic!() };
        let told = |text: String| {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(!error.contains(secret) && !error.contains('\n'), "{error}");
            error
        };
        assert!(told("hello".to_owned()).contains("FL1-"));
        assert!(told(format!("FL2-worker-{hash}-{secret}")).contains("FL1-"));
        assert!(told(format!("FL1-worker-{secret}")).contains("3 parts"));
        assert!(told(format!("FL1-king-{hash}-{secret}")).contains("`king` is no role"));
        // The role of those who hold the key is not given away.
        assert!(told(format!("FL1-node-{hash}-{secret}")).contains("`node` is no role"));
        assert!(told(format!("FL1-worker--{secret}")).contains("authority, is missing"));
        assert!(told(format!("FL1-worker-{secret}-{secret}")).contains("16 bytes long and not 32"));
        assert!(told(format!("FL1-worker-{hash}-")).contains("secret, is missing"));
        assert!(told(format!("FL1-worker-{hash}-!!")).contains("no base32"));
        assert!(!format!("{:?}", text.parse::<Token>().unwrap()).contains(secret));
    }

    #[test]
    fn a_token_may_stand_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = token();
        std::fs::write(file.path(), format!("{token}\n")).unwrap();
        let source: TokenSource = format!("@{}", file.path().display()).parse().unwrap();
        assert_eq!(source.read().unwrap(), token);
        let missing: TokenSource = "@/nowhere/token".parse().unwrap();
        assert!(missing.read().unwrap_err().to_string().contains("/nowhere/token"));
        assert_eq!(TokenSource::from(&token).read().unwrap(), token);
    }

    #[test]
    fn only_the_secret_proves_and_only_for_its_own_request() {
        let (ours, theirs) = (token(), token());
        let proof = ours.key().prove(b"request");
        assert!(ours.key().is_proof(b"request", &proof));
        assert!(!ours.key().is_proof(b"other", &proof));
        assert!(!theirs.key().is_proof(b"request", &proof));
        assert!(!ours.key().is_proof(b"request", &[]));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}", tail in "[A-Z2-7-]{0,120}") {
            let _ = text.parse::<Token>();
            let _ = format!("FL1-worker-{tail}").parse::<Token>();
        }
    }
}
