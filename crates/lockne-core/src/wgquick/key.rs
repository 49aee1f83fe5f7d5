//! The three kinds of WireGuard keys. Two of them are secret and never show themselves.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// How many bytes each key has.
pub const KEY_BYTES: usize = 32;

/// How many characters of base64 each key has, with its one `=`.
pub const KEY_CHARS: usize = 44;

/// The private key of an interface. Shows as `(hidden)`.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; KEY_BYTES]);

/// The public key of a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

/// The key that two peers share beside their own. Shows as `(hidden)`.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_BYTES]);

/// Why a text is no key. Never holds the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text has the wrong length.
    #[error("a key has 44 characters of base64, this has {0}")]
    Length(usize),
    /// The text is not base64, or not the one way to write these bytes.
    #[error("not a key in base64")]
    Encoding,
    /// `wg` takes this one for "no key".
    #[error("a key of zeros is no key")]
    Zero,
}

impl PrivateKey {
    /// Takes the bytes as they are; every use clamps them.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads 44 characters of canonical base64, as `wg` does.
    ///
    /// # Errors
    ///
    /// Fails if the text is not such a key, or only zeros.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let key = Self(*decode(text)?);
        if key.0 == [0; KEY_BYTES] {
            return Err(KeyError::Zero);
        }
        Ok(key)
    }

    /// The secret bytes.
    #[must_use]
    pub const fn secret_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl PresharedKey {
    /// Takes the bytes as they are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads 44 characters of canonical base64, as `wg` does.
    ///
    /// # Errors
    ///
    /// Fails if the text is not such a key.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*decode(text)?))
    }

    /// The secret bytes.
    #[must_use]
    pub const fn secret_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl PublicKey {
    /// Takes the bytes as they are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads 44 characters of canonical base64, as `wg` does.
    ///
    /// # Errors
    ///
    /// Fails if the text is not such a key.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*decode(text)?))
    }

    /// The bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

/// Base64 of `key`, wiped when dropped.
pub(super) fn encode(key: &[u8; KEY_BYTES]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(KEY_CHARS));
    STANDARD.encode_string(key, &mut text);
    text
}

fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyError> {
    if text.len() != KEY_CHARS {
        return Err(KeyError::Length(text.chars().count()));
    }
    // The decoder wants room for the padding, too.
    let mut bytes = Zeroizing::new([0; KEY_BYTES + 1]);
    let length = STANDARD
        .decode_slice(text, bytes.as_mut())
        .map_err(|_| KeyError::Encoding)?;
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    let decoded = bytes[..length].try_into();
    *key = decoded.map_err(|_| KeyError::Encoding)?;
    Ok(key)
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! hide {
    ($($secret:ty)*) => {$(
        impl fmt::Display for $secret {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("(hidden)")
            }
        }

        impl fmt::Debug for $secret {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("(hidden)")
            }
        }
    )*};
}

hide!(PrivateKey PresharedKey);

#[cfg(test)]
mod tests {
    use super::*;

    // From wg(8).
    const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

    #[test]
    fn public_key_is_written_as_it_was_read() {
        assert_eq!(PublicKey::from_base64(KEY).unwrap().to_string(), KEY);
    }

    #[test]
    fn secret_keys_do_not_show() {
        let private = PrivateKey::from_base64(KEY).unwrap();
        let preshared = PresharedKey::from_base64(KEY).unwrap();

        assert_eq!(
            format!("{private} {private:?} {preshared} {preshared:?}"),
            "(hidden) (hidden) (hidden) (hidden)"
        );
    }

    #[test]
    fn what_wg_refuses_is_refused() {
        let not_canonical = KEY.replace("mk=", "mm=");
        let url_safe = KEY.replace('+', "-");
        let unpadded = format!("{}A", KEY.trim_end_matches('='));
        for text in [&not_canonical, &url_safe, &unpadded] {
            assert_eq!(PublicKey::from_base64(text), Err(KeyError::Encoding));
        }

        assert_eq!(PublicKey::from_base64(""), Err(KeyError::Length(0)));
        assert_eq!(PublicKey::from_base64(&KEY[1..]), Err(KeyError::Length(43)));
    }

    #[test]
    fn private_key_of_zeros_is_refused() {
        let zeros = format!("{}=", "A".repeat(43));

        assert_eq!(PrivateKey::from_base64(&zeros), Err(KeyError::Zero));
        assert!(PresharedKey::from_base64(&zeros).is_ok());
    }
}
