//! "Did you mean …?"

/// The name among `known` that is most like what was written, if any is: a quarter of its letters may be wrong, missing, in
/// excess or swapped.
pub(crate) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let slips = |name: &str| {
        let slips = strsim::damerau_levenshtein(written, name);
        // The right name in the wrong section is one slip.
        if !written.is_empty() && last(written) == last(name) { slips.min(1) } else { slips }
    };
    let known = known.into_iter().map(|name| (slips(name), name));
    let (slips, name) = known.min_by_key(|(slips, _)| *slips)?;
    (slips <= written.chars().count().div_ceil(4)).then_some(name)
}

/// `, did you mean …?`, or nothing.
pub(crate) fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(written, known).map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_mended_and_strangers_are_not() {
        let known = ["registry.poll_interval", "server.http", "server.grpc", "log.level"];
        let check = |written| nearest(written, known);
        assert_eq!(check("registry.poll_intervall"), Some("registry.poll_interval"));
        assert_eq!(check("server.htpp"), Some("server.http"));
        assert_eq!(check("level"), Some("log.level"));
        assert_eq!(check("load.http"), Some("server.http"));
        assert_eq!(check("colour"), None);
        assert_eq!(check("service.host"), None);
        assert_eq!(check(""), None);
    }
}
