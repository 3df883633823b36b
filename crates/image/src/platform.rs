//! Which machine an image is for, and which of many images is for this one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `OS/ARCH[/VARIANT]` in Go's words: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    #[serde(rename = "architecture")]
    pub arch: String,
    /// Variant of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Longest part of a platform's name; Go's longest is `dragonfly`.
const LONGEST_WORD: usize = 32;

/// Text that is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform: OS/ARCH or OS/ARCH/VARIANT, as in linux/arm64")]
pub struct BadPlatform(pub String);

impl Platform {
    /// The machine that this runs on.
    pub fn host() -> Self {
        let (arch, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "x86" => ("386", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".into(), arch: arch.into(), variant: variant.map(str::to_owned) }
    }

    /// How well an image for `offered` serves who asks for this: lower is better, `None` not at
    /// all. A missing variant is the oldest one that programs are usually built for.
    pub(crate) fn distance(&self, offered: &Self) -> Option<u8> {
        if self.os != offered.os || self.arch != offered.arch {
            return None;
        }
        let usual = match self.arch.as_str() {
            "amd64" => "v1",
            "arm64" => "v8",
            "arm" => "v7",
            _ => "",
        };
        let wanted = self.variant.as_deref().unwrap_or(usual);
        let has = offered.variant.as_deref().unwrap_or(usual);
        if wanted == has {
            return Some(0);
        }
        // Older variants run on newer processors; the nearest one is best.
        let level = |text: &str| text.strip_prefix('v').and_then(|n| n.parse::<u8>().ok());
        level(wanted)?.checked_sub(level(has)?)
    }
}

impl FromStr for Platform {
    type Err = BadPlatform;

    fn from_str(text: &str) -> Result<Self, BadPlatform> {
        let word = |part: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            let fits = (1..=LONGEST_WORD).contains(&part.len());
            (fits && part.bytes().all(plain)).then(|| part.to_ascii_lowercase())
        };
        let parts: Option<Vec<String>> = text.split('/').map(word).collect();
        match parts.as_deref() {
            Some([os, arch]) => Ok(Self { os: os.clone(), arch: arch.clone(), variant: None }),
            Some([os, arch, variant]) => {
                Ok(Self { os: os.clone(), arch: arch.clone(), variant: Some(variant.clone()) })
            }
            _ => Err(BadPlatform(crate::text::show(text.as_bytes()))),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An index comes from a stranger, its words go to a terminal.
        let clean = |text: &str| crate::text::show(text.as_bytes());
        write!(f, "{}/{}", clean(&self.os), clean(&self.arch))?;
        self.variant.as_deref().map_or(Ok(()), |variant| write!(f, "/{}", clean(variant)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn platforms_parse_and_print() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(platform(text).to_string(), text);
        }
        let long = format!("linux/{}", "a".repeat(33));
        for bad in ["linux", "linux/", "a/b/c/d", "linux/am d64", "", &long] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nearest_variant_that_runs_is_best() {
        let arm = platform("linux/arm/v7");
        assert_eq!(arm.distance(&platform("linux/arm/v7")), Some(0));
        assert_eq!(arm.distance(&platform("linux/arm/v6")), Some(1));
        assert_eq!(arm.distance(&platform("linux/arm/v8")), None);
        assert_eq!(platform("linux/arm64").distance(&platform("linux/arm64/v8")), Some(0));
        assert_eq!(platform("linux/amd64").distance(&platform("linux/amd64/v3")), None);
        assert_eq!(platform("linux/amd64").distance(&platform("windows/amd64")), None);
    }

    proptest! {
        #[test]
        fn what_parses_prints_and_parses_again(text in "\\PC*|[a-zA-Z0-9._-]{1,5}/[a-zA-Z0-9._-]{1,5}(/[a-z0-9]{1,3})?") {
            if let Ok(platform) = text.parse::<Platform>() {
                prop_assert_eq!(platform.to_string().parse(), Ok(platform));
            }
        }
    }
}
