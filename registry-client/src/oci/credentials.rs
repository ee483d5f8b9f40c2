//! Who asks: credentials from the settings, or from the configuration that Docker, ORAS and Podman share.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::error::OciError;
use crate::name::quoted;

/// The largest file of a secret, configuration or answer of a helper.
const MAX_BYTES: u64 = 1 << 20;
/// How long a credential helper may take.
const HELPER_LIMIT: Duration = Duration::from_secs(20);
/// What helpers call the user of an identity token.
const TOKEN_USER: &str = "<token>";
/// What credentials of the public registry are filed under.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A secret, or where it lies. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The secret itself.
    Value(String),
    /// A file that holds it, read anew each time it is needed; one line end at its end does not count.
    File(PathBuf),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(…)"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

impl Secret {
    fn read(&self) -> Result<String, OciError> {
        let path = match self {
            Self::Value(value) => return Ok(value.clone()),
            Self::File(path) => path,
        };
        let mut text = read_small(path).map_err(|error| OciError::Credentials(format!("{}: {error}", path.display())))?;
        text.truncate(text.trim_end_matches(['\n', '\r']).len());
        Ok(text)
    }
}

/// Where credentials are looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OciCredentials {
    /// User and password for the registry; they come before all others.
    pub login: Option<(Secret, Secret)>,
    /// The folder of Docker's `config.json`, whose `auths`, `credHelpers` and `credsStore` count.
    pub docker_config: Option<PathBuf>,
}

/// What proves who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    Basic {
        user: String,
        password: String,
    },
    /// A long-lived token that is exchanged for those that requests take.
    Identity(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic",
            Self::Identity(_) => "Identity",
        })
    }
}

/// Credentials, and in words where they came from or were looked for in vain.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) login: Option<Login>,
    pub(super) tried: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl OciCredentials {
    /// Looks for those of a registry. Blocks.
    pub(super) fn find(&self, host: &str) -> Result<Found, OciError> {
        if let Some((user, password)) = &self.login {
            let login = Login::Basic { user: user.read()?, password: password.read()? };
            return Ok(Found { login: Some(login), tried: "with oci.username and oci.password".into() });
        }
        let Some(folder) = &self.docker_config else {
            return Ok(Found { login: None, tried: "without credentials: none are set".into() });
        };
        let path = folder.join("config.json");
        let config = match read_small(&path) {
            Ok(text) => parse(&text).map_err(|problem| OciError::Credentials(format!("{}: {problem}", path.display())))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let tried = format!("without credentials: oci.username is not set and there is no {}", path.display());
                return Ok(Found { login: None, tried });
            }
            Err(error) => return Err(OciError::Credentials(format!("{}: {error}", path.display()))),
        };
        config.find(host, &path)
    }
}

/// Says what is wrong by place; what is written there may be secret.
fn parse(text: &str) -> Result<DockerConfig, String> {
    serde_json::from_str(text).map_err(|error| format!("it is not valid at line {}, column {}", error.line(), error.column()))
}

impl DockerConfig {
    fn find(&self, host: &str, path: &Path) -> Result<Found, OciError> {
        let of_host = |key: &&String| is_for(key, host);
        if let Some((key, helper)) = self.cred_helpers.iter().find(|(key, _)| of_host(key))
            && let Some(login) = ask_helper(helper, key)?
        {
            return Ok(Found { login: Some(login), tried: format!("with what docker-credential-{helper} has") });
        }
        for (key, auth) in self.auths.iter().filter(|(key, _)| of_host(key)) {
            let wrong = |problem: &str| OciError::Credentials(format!("{}: auths.{}: {problem}", path.display(), quoted(key)));
            if let Some(login) = auth.login().map_err(wrong)? {
                return Ok(Found { login: Some(login), tried: format!("with the credentials in {}", path.display()) });
            }
        }
        if let Some(helper) = self.creds_store.as_ref().filter(|helper| !helper.is_empty()) {
            let key = self.auths.keys().find(|key| is_for(key, host)).map_or_else(|| filed_under(host), |key| key.as_str());
            if let Some(login) = ask_helper(helper, key)? {
                return Ok(Found { login: Some(login), tried: format!("with what docker-credential-{helper} has") });
            }
        }
        let tried = format!("without credentials: oci.username is not set and {} has none for {host}", path.display());
        Ok(Found { login: None, tried })
    }
}

impl Auth {
    fn login(&self) -> Result<Option<Login>, &'static str> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Login::Identity(token)));
        }
        if let (Some(user), Some(password)) = (given(&self.username), given(&self.password)) {
            return Ok(Some(Login::Basic { user, password }));
        }
        let Some(auth) = given(&self.auth) else { return Ok(None) };
        let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = decoded.ok_or("`auth` is not base64 of text")?;
        let (user, password) = decoded.split_once(':').ok_or("`auth` is not base64 of user:password")?;
        // Some tools pad it.
        let password = password.trim_end_matches('\0');
        Ok(Some(Login::Basic { user: user.to_owned(), password: password.to_owned() }))
    }
}

fn filed_under(host: &str) -> &str {
    if host == "docker.io" { DOCKER_HUB_KEY } else { host }
}

/// Whether an entry is one for this host: tools write the host, a URL, or for the public registry an old URL.
fn is_for(key: &str, host: &str) -> bool {
    let bare = key.split_once("://").map_or(key, |(_, rest)| rest);
    let bare = bare.split('/').next().unwrap_or(bare);
    bare.eq_ignore_ascii_case(host) || key == filed_under(host)
}

fn read_small(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(std::io::Error::other("it is too large"));
    }
    Ok(text)
}

/// Asks a credential helper; `None` where it has nothing for this host. Blocks.
fn ask_helper(name: &str, host: &str) -> Result<Option<Login>, OciError> {
    let program = format!("docker-credential-{name}");
    // The name becomes part of a program's name, and must not become a path.
    let outcome = if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        run_helper(Command::new(&program), host, HELPER_LIMIT)
    } else {
        Err("it is no name of a credential helper".to_owned())
    };
    outcome.map_err(|problem| OciError::Credentials(format!("{}: {problem}", quoted(&program))))
}

/// Runs a program with `get` as Docker does. What it prints is shown nowhere. Blocks.
fn run_helper(mut program: Command, host: &str, limit: Duration) -> Result<Option<Login>, String> {
    let child = program.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.map_err(|error| format!("it can't be started: {error}"))?;
    // A helper that does not read ends all the same.
    drop(child.stdin.take().map(|mut input| input.write_all(host.as_bytes())));
    let output = child.stdout.take();
    let (sender, answer) = sync_channel(1);
    let reader = std::thread::Builder::new().name("credential helper".into()).spawn(move || {
        let mut text = String::new();
        let read = output.map(|output| output.take(MAX_BYTES).read_to_string(&mut text));
        drop(sender.send(matches!(read, Some(Ok(_))).then_some(text)));
    });
    let text = reader
        .map_err(|error| format!("there is no thread for it: {error}"))
        .and_then(|_| answer.recv_timeout(limit).map_err(|_| format!("it gave no answer within {} s", limit.as_secs_f32())));
    // It has closed its output; or it is not waited for any longer.
    if text.is_err() {
        drop(child.kill());
    }
    let status = child.wait().map_err(|error| format!("its end can't be seen: {error}"))?;
    let text = text?.ok_or("its answer is not text")?;
    if !status.success() {
        // What helpers print where they have nothing.
        let none = text.to_ascii_lowercase().contains("credentials not found");
        return if none { Ok(None) } else { Err(format!("it failed ({status})")) };
    }
    let answer: HelperAnswer = serde_json::from_str(&text).map_err(|_| "its answer is not valid")?;
    Ok(Some(match answer {
        HelperAnswer { username, secret } if username == TOKEN_USER => Login::Identity(secret),
        HelperAnswer { username, secret } => Login::Basic { user: username, password: secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: &str, host: &str) -> Result<Found, OciError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        OciCredentials { login: None, docker_config: Some(folder.path().to_owned()) }.find(host)
    }

    fn basic(user: &str, password: &str) -> Option<Login> {
        Some(Login::Basic { user: user.into(), password: password.into() })
    }

    #[test]
    fn docker_s_configuration_is_read() {
        let config = format!(
            r#"{{"auths": {{"https://a.example/v2/": {{"auth": "{}"}}, "b.example:5000": {{"identitytoken": "t"}},
                "https://index.docker.io/v1/": {{"username": "u", "password": "p"}}, "empty.example": {{}}}}, "HttpHeaders": {{}}}}"#,
            STANDARD.encode("me:pass:word")
        );
        let check = |host: &str, expected: Option<Login>| {
            let found = found(&config, host).unwrap();
            assert_eq!(found.login, expected, "{host}");
            found.tried
        };
        check("a.example", basic("me", "pass:word"));
        check("b.example:5000", Some(Login::Identity("t".into())));
        check("docker.io", basic("u", "p"));
        check("b.example", None);
        assert!(check("empty.example", None).contains("has none for empty.example"));
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_is_shown() {
        let check = |config: &str, part: &str| {
            let error = found(config, "a").unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
        };
        check(r#"{"auths": {"a": {"auth": "hunter2!"}}}"#, "not base64");
        check(r#"{"auths": {"a": "hunter2"}}"#, "line 1");
        check(r#"{"credHelpers": {"a": "../x"}}"#, "is no name of a credential helper");
        check(r#"{"credHelpers": {"a": "not-on-this-machine"}}"#, "can't be started");
        let login = Login::Basic { user: "me".into(), password: "hunter2".into() };
        assert!(!format!("{login:?} {:?}", Secret::Value("hunter2".into())).contains("hunter2"));
    }

    #[test]
    fn a_helper_is_asked_as_docker_asks_it() {
        let helper = |script: &str, limit: Duration| {
            let mut command = Command::new("sh");
            command.args(["-c", script, "helper"]);
            run_helper(command, "a.example", limit)
        };
        let script = r#"test "$1" = get && read -r host || true; printf '{"ServerURL":"x","Username":"%s","Secret":"p"}' "$host""#;
        assert_eq!(helper(script, HELPER_LIMIT), Ok(basic("a.example", "p")));
        let token = r#"printf '{"ServerURL":"x","Username":"<token>","Secret":"t"}'"#;
        assert_eq!(helper(token, HELPER_LIMIT), Ok(Some(Login::Identity("t".into()))));
        assert_eq!(helper("echo credentials not found in native keychain; exit 1", HELPER_LIMIT), Ok(None));
        let problem = helper("echo hunter2; exit 3", HELPER_LIMIT).unwrap_err();
        assert!(problem.contains("exit status: 3") && !problem.contains("hunter2"), "{problem}");
        assert_eq!(helper("echo hunter2", HELPER_LIMIT), Err("its answer is not valid".to_owned()));
        let problem = helper("exec tail -f /dev/null", Duration::from_millis(50)).unwrap_err();
        assert!(problem.contains("no answer within"), "{problem}");
    }

    #[test]
    fn settings_come_first_and_files_are_read_without_their_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "hunter2\n").unwrap();
        let login = Some((Secret::Value("me".into()), Secret::File(file.clone())));
        let credentials = OciCredentials { login, docker_config: None };
        assert_eq!(credentials.find("a").unwrap().login, basic("me", "hunter2"));
        std::fs::remove_file(&file).unwrap();
        assert!(credentials.find("a").unwrap_err().to_string().contains("password"));
    }
}
