//! How a store of another machine is reached, and its errors in words that say what was tried.
//!
//! [`Reached`] lies around the store: it bounds how long an answer may take, and turns what a server or a network says into an
//! [`AccessError`]. What the registry itself acts on (not found, already there, precondition) passes unchanged. Bodies of errors may
//! quote tokens and signatures: no more than their code and message are shown.

mod levels;
mod uploads;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::client::HttpError;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::time::Instant;

pub(super) use uploads::{ReachedUploads, has_forgotten_upload};

/// How long an answer may take to begin, and then each piece of it. A look at a registry that is dead ends after it.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);
/// How long all pieces of an answer together may be waited for, beyond what they bring: each byte, and each object of a listing, is worth
/// some time more. One that only drips has an end so.
const PATIENCE: Duration = Duration::from_secs(30);
/// The slowest line that is waited for, in bytes a second.
const SLOWEST: u64 = 16 << 10;
/// How long an object of a listing may take: a thousand of them come at a time.
const LISTED_OBJECT: Duration = Duration::from_millis(10);
/// What is shown of a server's message, in characters.
const SHOWN: usize = 200;

/// How a store was opened. Holds no secrets.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    place: String,
    tried: String,
    /// What is missing where the server says that nothing is there: ``bucket `models` ``.
    root: String,
    read_only: bool,
}

impl Access {
    pub(super) fn new(place: String, tried: String, root: String) -> Self {
        Self { place, tried, root, read_only: false }
    }

    pub(super) fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// With what, as the end of a sentence.
    #[cfg(test)]
    pub(super) fn tried(&self) -> &str {
        &self.tried
    }
}

/// What went wrong between us and the store.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trouble {
    /// 401 or 403.
    Refused(Answer),
    /// The bucket or container is not there.
    Missing(Answer),
    /// Another status.
    Failed(Answer),
    /// It answered, and not as a store of its kind does.
    Odd(String),
    /// No answer.
    Unreachable(String),
    /// No answer in time.
    Silent,
    /// An answer that came too slowly to be waited for.
    Dripping,
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    status: u16,
    code: Option<String>,
    message: Option<String>,
}

/// An error of a store, with what was tried.
#[derive(Debug, Clone)]
pub(crate) struct AccessError {
    access: Arc<Access>,
    trouble: Trouble,
}

impl AccessError {
    /// The server's name for what went wrong, where it gave one.
    fn code(&self) -> Option<&str> {
        match &self.trouble {
            Trouble::Refused(answer) | Trouble::Missing(answer) | Trouble::Failed(answer) => answer.code.as_deref(),
            Trouble::Odd(_) | Trouble::Unreachable(_) | Trouble::Silent | Trouble::Dripping => None,
        }
    }

    /// Whether the server is there and does not do what was asked: asking again helps nothing.
    pub(crate) fn is_lacking(&self) -> bool {
        match &self.trouble {
            Trouble::Refused(answer) | Trouble::Missing(answer) | Trouble::Failed(answer) => {
                matches!(answer.status, 400..=499 | 501) && !matches!(answer.status, 408 | 429)
            }
            Trouble::Odd(_) => true,
            Trouble::Unreachable(_) | Trouble::Silent | Trouble::Dripping => false,
        }
    }
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Access { place, tried, root, .. } = self.access.as_ref();
        match &self.trouble {
            Trouble::Refused(answer) => write!(f, "{place} refused ({answer}): tried {tried}"),
            Trouble::Missing(answer) => write!(f, "{place}: {root} does not exist ({answer}): tried {tried}"),
            Trouble::Failed(answer) => write!(f, "{place} failed ({answer}): tried {tried}"),
            Trouble::Odd(what) => write!(f, "{place} gave an answer that makes no sense ({what}): tried {tried}"),
            Trouble::Unreachable(why) => write!(f, "{place} can't be reached ({why}): tried {tried}"),
            Trouble::Silent => write!(f, "{place} gave no answer within {} s: tried {tried}", ANSWER_LIMIT.as_secs()),
            Trouble::Dripping => write!(f, "{place} answers too slowly to be waited for: tried {tried}"),
        }
    }
}

impl std::error::Error for AccessError {}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        self.message.as_ref().map_or(Ok(()), |message| write!(f, ": {message}"))
    }
}

impl Answer {
    fn of(status: u16, body: Option<&str>) -> Self {
        let body = body.unwrap_or_default();
        let code = element(body, "Code").filter(|code| code.chars().all(|char| char.is_ascii_alphanumeric()));
        let message = element(body, "Message").map(|message| message.trim().trim_end_matches('.').to_owned());
        Self { status, code, message: message.filter(|message| !message.is_empty()) }
    }

    fn says_missing(&self) -> bool {
        matches!(self.code.as_deref(), Some("NoSuchBucket" | "ContainerNotFound" | "FilesystemNotFound"))
    }
}

/// The first line of an element of the small XML bodies that stores answer with.
fn element(body: &str, name: &str) -> Option<String> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once("</")?;
    let line = text.lines().next().unwrap_or_default();
    Some(line.chars().filter(|char| !char.is_control()).take(SHOWN).collect())
}

/// The causes of an error, itself first.
fn chain<'a>(error: &'a (dyn std::error::Error + 'static)) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// What the server answered, where it did. The library keeps status and body to itself and shows them in the text of its error.
fn answer_of(error: &(dyn std::error::Error + 'static)) -> Option<Answer> {
    let text = chain(error).last()?.to_string();
    let (_, rest) = text.split_once("non-2xx status code: ")?;
    let status = rest.get(..3)?.parse().ok()?;
    Some(Answer::of(status, Some(rest)))
}

/// The innermost cause, shortened: what is above it repeats it, or holds URLs.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let text = chain(error).last().map(ToString::to_string).unwrap_or_default();
    let text = text.split(['<', '\n']).next().unwrap_or_default();
    text.chars().filter(|char| !char.is_control()).take(SHOWN).collect()
}

impl Access {
    /// A store's error in our words; what the registry acts on stays what it is, with a cause in our words.
    fn explain(self: &Arc<Self>, error: StoreError) -> StoreError {
        let answer = answer_of(&error);
        let cause = |source| match answer.clone() {
            Some(answer) => Box::new(self.access_error(Trouble::Failed(answer))) as _,
            None => source,
        };
        match error {
            StoreError::NotFound { path, source } => match answer.clone().filter(Answer::says_missing) {
                Some(answer) => self.error(Trouble::Missing(answer)),
                None => StoreError::NotFound { path, source: cause(source) },
            },
            StoreError::AlreadyExists { path, source } => StoreError::AlreadyExists { path, source: cause(source) },
            StoreError::Precondition { path, source } => StoreError::Precondition { path, source: cause(source) },
            StoreError::NotModified { path, source } => StoreError::NotModified { path, source: cause(source) },
            StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } | StoreError::InvalidPath { .. } => error,
            error => self.error(Self::trouble(&error)),
        }
    }

    fn trouble(error: &StoreError) -> Trouble {
        match answer_of(error) {
            Some(answer) if answer.says_missing() => Trouble::Missing(answer),
            Some(answer) if matches!(answer.status, 401 | 403) => Trouble::Refused(answer),
            Some(answer) => Trouble::Failed(answer),
            None if chain(error).any(|error| error.is::<HttpError>()) => Trouble::Unreachable(innermost(error)),
            // Credentials that can't be had, or an answer that can't be read.
            None => Trouble::Odd(innermost(error)),
        }
    }

    fn error(self: &Arc<Self>, trouble: Trouble) -> StoreError {
        StoreError::Generic { store: "remote", source: Box::new(self.access_error(trouble)) }
    }

    fn access_error(self: &Arc<Self>, trouble: Trouble) -> AccessError {
        AccessError { access: Arc::clone(self), trouble }
    }

    async fn in_time<T>(self: &Arc<Self>, answer: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout(ANSWER_LIMIT, answer).await {
            Ok(outcome) => outcome.map_err(|error| self.explain(error)),
            Err(_) => Err(self.error(Trouble::Silent)),
        }
    }

    fn refuse_writing(&self) -> Result<()> {
        if !self.read_only {
            return Ok(());
        }
        Err(StoreError::NotImplemented { operation: "put-if-absent".to_owned(), implementer: self.place.clone() })
    }
}

/// What was wrong between us and the store, where that is what this error says.
pub(crate) fn access_error(error: &StoreError) -> Option<&AccessError> {
    match error {
        StoreError::Generic { source, .. } => source.downcast_ref(),
        _ => None,
    }
}

/// A store of another machine.
pub(crate) struct Reached {
    inner: Arc<dyn ObjectStore>,
    /// The same, where it lists folders in pages.
    levels: Option<Arc<dyn PaginatedListStore>>,
    access: Arc<Access>,
}

impl Reached {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, levels: Option<Arc<dyn PaginatedListStore>>, access: Arc<Access>) -> Self {
        Self { inner, levels, access }
    }

    /// Pieces of an answer, each in time, and all of them in a time that grows with what they are `worth`.
    fn pieces<T: Send + 'static>(
        &self,
        pieces: BoxStream<'static, Result<T>>,
        worth: fn(&T) -> Duration,
    ) -> BoxStream<'static, Result<T>> {
        let access = Arc::clone(&self.access);
        type Waiting<T> = (Arc<Access>, Option<BoxStream<'static, Result<T>>>, Duration);
        let next = move |(access, pieces, left): Waiting<T>| async move {
            let mut pieces = pieces?;
            let asked = Instant::now();
            // Only waiting counts: whoever reads may take as long as it likes.
            match tokio::time::timeout(left.min(ANSWER_LIMIT), pieces.next()).await {
                Ok(None) => None,
                Ok(Some(Ok(piece))) => {
                    let left = left.saturating_sub(asked.elapsed()).saturating_add(worth(&piece));
                    Some((Ok(piece), (access, Some(pieces), left)))
                }
                Ok(Some(Err(error))) => Some((Err(access.explain(error)), (access, None, left))),
                Err(_) => {
                    let trouble = if left < ANSWER_LIMIT { Trouble::Dripping } else { Trouble::Silent };
                    Some((Err(access.error(trouble)), (access, None, left)))
                }
            }
        };
        futures::stream::unfold((access, Some(pieces), PATIENCE), next).boxed()
    }
}

impl fmt::Debug for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reached").field("inner", &self.inner).field("access", &self.access).finish_non_exhaustive()
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.access.place)
    }
}

#[async_trait]
impl ObjectStore for Reached {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.access.refuse_writing()?;
        self.inner.put_opts(location, payload, options).await.map_err(|error| self.access.explain(error))
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.access.refuse_writing()?;
        let upload = self.inner.put_multipart_opts(location, options).await.map_err(|error| self.access.explain(error))?;
        Ok(Box::new(uploads::ReachedUpload { inner: upload, access: Arc::clone(&self.access) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let mut outcome = self.access.in_time(self.inner.get_opts(location, options)).await;
        // What a HEAD is refused with has no body that says why.
        let refused = |error: &StoreError| access_error(error).is_some_and(|error| matches!(error.trouble, Trouble::Refused(_)));
        if head && outcome.as_ref().is_err_and(refused) {
            let why = self.access.in_time(self.inner.get_opts(location, GetOptions::default())).await;
            outcome = outcome.map_err(|error| why.err().unwrap_or(error));
        }
        let mut result = outcome?;
        if let GetResultPayload::Stream(pieces) = result.payload {
            result.payload = GetResultPayload::Stream(
                self.pieces(pieces, |piece| Duration::from_micros((piece.len() as u64).saturating_mul(1_000_000) / SLOWEST)),
            );
        }
        Ok(result)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if let Err(error) = self.access.refuse_writing() {
            return futures::stream::once(async { Err(error) }).boxed();
        }
        let access = Arc::clone(&self.access);
        self.inner.delete_stream(locations).map(move |outcome| outcome.map_err(|error| access.explain(error))).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.pieces(self.inner.list(prefix), |_| LISTED_OBJECT)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.level(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.access.refuse_writing()?;
        self.inner.copy_opts(from, to, options).await.map_err(|error| self.access.explain(error))
    }
}

/// What a server says that can't do what was asked.
#[cfg(test)]
pub(crate) fn lacking() -> StoreError {
    let access = Access::new("http://test".to_owned(), "nothing".to_owned(), "the place".to_owned());
    Arc::new(access).error(Trouble::Odd("it can't list".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_answer_code_and_message_are_shown_and_nothing_else() {
        let body = "<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>The signature does not match.\nmore</Message>\
                    <Token-0>SECRET</Token-0><StringToSign>SECRET</StringToSign></Error>";
        let answer = Answer::of(403, Some(body));
        assert_eq!(answer.to_string(), "403 SignatureDoesNotMatch: The signature does not match");
        assert_eq!(Answer::of(500, None).to_string(), "500");
        assert_eq!(Answer::of(502, Some("<html>SECRET</html>")).to_string(), "502");
        assert!(Answer::of(404, Some("<Error><Code>NoSuchBucket</Code></Error>")).says_missing());
        assert!(!Answer::of(404, Some("<Error><Code>NoSuchKey</Code></Error>")).says_missing());
        let hostile = format!("<Code>{}</Code><Message>{}</Message>", "\u{1b}[31m", "x".repeat(10_000));
        let answer = Answer::of(400, Some(&hostile));
        assert!(answer.code.is_none() && answer.to_string().len() < 300, "{answer}");
    }

    #[tokio::test]
    async fn what_the_registry_acts_on_passes_and_reading_does_not_write() {
        let access = Access::new("http://host/models".to_owned(), "nothing".to_owned(), "the place".to_owned()).read_only();
        let store = Reached::new(Arc::new(object_store::memory::InMemory::new()), None, Arc::new(access));
        use object_store::ObjectStoreExt as _;
        let gone = store.get(&Path::from("x")).await.unwrap_err();
        assert!(matches!(gone, StoreError::NotFound { .. }), "{gone}");
        let refused = store.put(&Path::from("x"), "y".into()).await.unwrap_err();
        assert!(crate::log::lacks_put_if_absent(&refused) && refused.to_string().contains("http://host/models"), "{refused}");
        assert!(store.put_multipart(&Path::from("x")).await.is_err() && store.delete(&Path::from("x")).await.is_err());
    }

    fn reached() -> Reached {
        let access = Access::new("s3://models".to_owned(), "nothing".to_owned(), "the place".to_owned());
        Reached::new(Arc::new(object_store::memory::InMemory::new()), None, Arc::new(access))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_drips_has_an_end_and_one_that_is_slow_does_not_break_off() {
        let every = |pause: Duration, pieces: usize| {
            let pieces = futures::stream::iter(0..pieces).then(move |nth| async move {
                tokio::time::sleep(pause).await;
                Ok(nth)
            });
            pieces.boxed()
        };
        let reached = reached();
        let came = async |pause, pieces, worth| {
            let came: Vec<_> = reached.pieces(every(pause, pieces), worth).collect().await;
            let failed = came.last().and_then(|last| last.as_ref().err()).map(ToString::to_string);
            (came.len(), failed.unwrap_or_default())
        };
        let (count, why) = came(Duration::from_secs(7), 1_000, |_| Duration::from_millis(1)).await;
        assert!(count == 5 && why.contains("too slowly"), "{count} {why}");
        let (count, why) = came(Duration::from_secs(9), 10, |_| Duration::from_secs(60)).await;
        assert!(count == 1 && why.contains("no answer within 8 s"), "{count} {why}");
        assert_eq!(came(Duration::from_secs(7), 1_000, |_| Duration::from_secs(7)).await, (1_000, String::new()));
    }
}
