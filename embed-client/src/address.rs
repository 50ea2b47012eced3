//! Where replicas are said to be, and how names become addresses.

use std::{fmt, io, net::SocketAddr, path::PathBuf, str::FromStr};

/// One entry of the list of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host:port`: every IP address behind the name is a replica.
    Name(String),
    /// A file of such names, one a line; empty lines and what follows a `#` do not count.
    File(PathBuf),
}

impl FromStr for Address {
    type Err = &'static str;

    /// Reads `host:port`, also after `http://` or `https://`, or `file:PATH`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("file:") {
            Some("") => Err("expected file:PATH"),
            Some(path) => Ok(Self::File(path.into())),
            None => Ok(Self::Name(host_and_port(text)?.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// `host:port` of what was written.
fn host_and_port(text: &str) -> Result<&str, &'static str> {
    let rest = text.strip_prefix("http://");
    let rest = rest.or_else(|| text.strip_prefix("https://"));
    let rest = rest.unwrap_or(text);
    if rest.contains("://") {
        return Err("expected host:port, or that after http:// or https://");
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    match rest.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(rest),
        _ => Err("expected host:port"),
    }
}

/// The host of `host:port`.
pub(crate) fn host(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(host, _)| host)
}

/// The names in the text of a file.
///
/// An error names the first line that is none; a file without a name is one too, since it is more
/// likely half written than meant.
pub(crate) fn names_of(text: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let name = host_and_port(line).map_err(|problem| format!("line {number}: {problem}"))?;
        names.push(name.to_owned());
    }
    if names.is_empty() {
        return Err("holds no address".to_owned());
    }
    Ok(names)
}

/// Turns a name into addresses.
#[tonic::async_trait]
pub trait Resolve: fmt::Debug + Send + Sync {
    /// All addresses behind `name`, which is `host:port`.
    ///
    /// # Errors
    /// When the name cannot be resolved now; the addresses known before stay in use.
    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>>;
}

/// Asks the system: its hosts file, DNS, or what else it is set up for.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

#[tonic::async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host(name).await?.collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_may_come_with_a_scheme() {
        let name = |text: &str| Address::Name(text.to_owned());
        assert_eq!("a:1".parse(), Ok(name("a:1")));
        assert_eq!("http://[::1]:7300".parse(), Ok(name("[::1]:7300")));
        assert_eq!("file:/x".parse(), Ok(Address::File("/x".into())));
        assert_eq!("https://a:1".parse(), Ok(name("a:1")));
        for wrong in ["a", "ftp://a:1", ":1", "a:b", "a:70000", "file:"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_holds_one_name_a_line() {
        let text = "# replicas\na:1\n\n  http://b:2  # second\n";
        assert_eq!(names_of(text).unwrap(), ["a:1", "b:2"]);
        assert_eq!(
            names_of("a:1\nb\n").unwrap_err(),
            "line 2: expected host:port"
        );
        assert!(names_of("# none\n").is_err());
    }
}
