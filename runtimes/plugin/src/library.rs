//! Opening libraries, once for the life of the process.

use std::path::Path;

use bascule_runtime_api::LoadError;
use bascule_runtime_api::plugin::{ABI_VERSION, ENTRY, Plugin};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// Opens a library that others will need, and keeps it open: they find it by its name.
///
/// # Errors
/// What the linker says.
#[expect(unsafe_code, reason = "a library runs code when it is opened")]
pub(crate) fn open(path: &Path) -> Result<Library, String> {
    // SAFETY: what an operator has named, or put where the program looks, is trusted as the program itself is.
    unsafe { Library::open(Some(path.as_os_str()), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| text(&error))
}

/// The table of a plugin.
///
/// # Errors
/// [`LoadError::Unavailable`] where it is no plugin, or one of another version.
#[expect(unsafe_code, reason = "a symbol has the type that the ABI says")]
pub(crate) fn table(path: &Path, hint: &str) -> Result<&'static Plugin, LoadError> {
    let unavailable =
        |message: String| LoadError::Unavailable { message: format!("{}: {message}", path.display()), hint: hint.to_owned() };
    let library = open(path).map_err(|said| unavailable(format!("can't be opened: {said}")))?;
    // SAFETY: the function is part of the ABI in every version; what it returns begins with the version and stays for ever.
    let table = unsafe {
        let entry = library.get::<unsafe extern "C" fn() -> *const Plugin>(ENTRY.to_bytes_with_nul());
        let entry = entry.map_err(|_| unavailable("no plugin: it has no function bascule_runtime_plugin".to_owned()))?;
        let table = entry();
        checked(table).map_err(unavailable)?
    };
    // Sessions and outputs may outlive everything else: the code stays.
    std::mem::forget(library);
    Ok(table)
}

/// The table behind a pointer, where it is of our version.
///
/// # Safety
/// The pointer is null, or points to a table that stays for ever and begins with its version.
#[expect(unsafe_code, reason = "only the version says what the rest is")]
unsafe fn checked(table: *const Plugin) -> Result<&'static Plugin, String> {
    if table.is_null() {
        return Err("a plugin without a table".to_owned());
    }
    // SAFETY: the caller says so; nothing but the first field is read before it is known.
    let version = unsafe { (&raw const (*table).abi_version).read() };
    if version != ABI_VERSION {
        return Err(format!(
            "a plugin of ABI version {version}, expected version {ABI_VERSION}: build it from the sources of this program"
        ));
    }
    // SAFETY: a table of this version.
    Ok(unsafe { &*table })
}

fn text(error: &libloading::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Whether there is a file to open.
pub(crate) fn is_there(path: &Path) -> bool {
    path.is_file()
}

#[cfg(test)]
mod tests {
    use bascule_runtime_api::plugin::guest;
    use bascule_runtime_api::{LoadError, Runtime};

    use super::*;

    struct Nothing;

    impl guest::Open for Nothing {
        fn open(_: &[u8]) -> Result<Box<dyn Runtime>, LoadError> {
            Err(LoadError::Unsupported { message: "nothing".to_owned() })
        }
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        static OURS: Plugin = guest::table::<Nothing>();
        static THEIRS: Plugin = Plugin { abi_version: 7, ..guest::table::<Nothing>() };
        #[expect(unsafe_code, reason = "the tables are statics")]
        // SAFETY: null, or statics.
        unsafe {
            assert!(checked(&raw const OURS).is_ok());
            assert!(checked(std::ptr::null()).is_err());
            assert_eq!(
                checked(&raw const THEIRS).unwrap_err(),
                format!("a plugin of ABI version 7, expected version {ABI_VERSION}: build it from the sources of this program")
            );
        }
    }

    #[test]
    fn what_is_no_plugin_is_told_with_the_hint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libplugin.so");
        std::fs::write(&path, "text").unwrap();
        let Err(LoadError::Unavailable { message, hint }) = table(&path, "run `make plugin`") else { panic!("opened") };
        assert!(message.starts_with(&format!("{}: can't be opened: ", path.display())), "{message}");
        assert_eq!(hint, "run `make plugin`");
        // The C library is one, and no plugin.
        let Err(error) = table(Path::new("libc.so.6"), "") else { panic!("opened") };
        assert_eq!(error.to_string(), "libc.so.6: no plugin: it has no function bascule_runtime_plugin");
    }
}
