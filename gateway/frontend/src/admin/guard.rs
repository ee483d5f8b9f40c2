//! Keeps browsers from being sent here.
//!
//! A page from anywhere can make its visitor's browser talk to a loopback address: by a host name of the page's own that resolves there
//! (the header `Host` tells), or openly (`Origin` tells). Neither is sent by command lines, probes or Prometheus.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri};

use super::refusal::Refusal;

/// Checks the headers of a request; `loopback` is whether the port listens on a loopback address.
pub(crate) fn check(headers: &HeaderMap, uri: &Uri, loopback: bool) -> Result<(), Refusal> {
    let host = match uri.authority() {
        Some(authority) => Some(authority.clone()),
        None => headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok()),
    };
    if loopback && !host.as_ref().is_some_and(|host| is_loopback(host.host())) {
        let hint = "use localhost, 127.0.0.1 or [::1] as the host of the URL";
        return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "the header 'Host' does not name this machine", hint));
    }
    let foreign = headers.get_all(ORIGIN).iter().any(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        origin.is_none_or(|(_, origin)| host.as_ref().is_none_or(|host| !host.as_str().eq_ignore_ascii_case(origin)))
    });
    if foreign {
        let hint = "call it from a command line; pages of other origins are not let in";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "the header 'Origin' names another site", hint));
    }
    Ok(())
}

fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare {
        Some(address) => address.parse::<Ipv6Addr>().is_ok_and(|address| IpAddr::V6(address).to_canonical().is_loopback()),
        None => host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(host: Option<&str>, origin: Option<&str>, loopback: bool) -> u16 {
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(HOST, host.parse().unwrap());
        }
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        check(&headers, &Uri::from_static("/admin/v1/status"), loopback).map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_names_of_this_machine_are_hosts() {
        for host in ["localhost", "LOCALHOST:8002", "127.0.0.1", "127.0.0.1:8002", "127.9.9.9", "[::1]", "[::1]:8002"] {
            assert_eq!(outcome(Some(host), None, true), 200, "{host}");
        }
        for host in
            ["evil.example", "evil.example:8002", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example", "[::2]", "a b"]
        {
            assert_eq!(outcome(Some(host), None, true), 421, "{host}");
        }
        assert_eq!(outcome(None, None, true), 421);
        assert_eq!(outcome(Some("gateway.example:8002"), None, false), 200);
    }

    #[test]
    fn other_origins_are_refused() {
        for (origin, status) in
            [("http://localhost:8002", 200), ("http://evil.example", 403), ("http://localhost:3000", 403), ("null", 403)]
        {
            assert_eq!(outcome(Some("localhost:8002"), Some(origin), true), status, "{origin}");
        }
        assert_eq!(outcome(Some("gateway.example"), Some("http://evil.example"), false), 403);
        assert_eq!(outcome(Some("gateway.example"), Some("https://gateway.example"), false), 200);
    }
}
