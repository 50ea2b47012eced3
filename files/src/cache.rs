//! Where things are kept that can be made again.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// The user's cache folder of this project: `$XDG_CACHE_HOME/scone`, else `~/.cache/scone`; `None`
/// when neither variable holds an absolute path (the XDG specification has relative ones ignored).
/// Nothing is created.
pub fn cache_dir() -> Option<PathBuf> {
    choose(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))
}

fn choose(cache_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |value: Option<OsString>| value.map(PathBuf::from).filter(|p| p.is_absolute());
    absolute(cache_home)
        .or_else(|| absolute(home).map(|home| home.join(".cache")))
        .map(|dir| dir.join("scone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_folder_follows_xdg_then_home() {
        let set = |value: &str| Some(OsString::from(value));
        let found = |cache, home| choose(cache, home).map(|p| p.display().to_string());
        assert_eq!(found(set("/c"), set("/h")).as_deref(), Some("/c/scone"));
        assert_eq!(
            found(set("c"), set("/h")).as_deref(),
            Some("/h/.cache/scone")
        );
        assert_eq!(
            found(set(""), set("/h")).as_deref(),
            Some("/h/.cache/scone")
        );
        assert_eq!(found(None, None), None);
    }
}
