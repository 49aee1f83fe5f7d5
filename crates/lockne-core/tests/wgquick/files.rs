//! Files in the style of providers, routers and the manuals. Their keys were made for this test.

use lockne_core::wgquick::{Config, Field, HookPolicy, Phase, Warning};

/// Every file of `tests/conf`.
pub(crate) const FILES: &[(&str, &str)] = &[
    ("airvpn", include_str!("../conf/airvpn.conf")),
    ("everything", include_str!("../conf/everything.conf")),
    ("hub", include_str!("../conf/hub.conf")),
    ("ivpn", include_str!("../conf/ivpn.conf")),
    ("manual-wg", include_str!("../conf/manual-wg.conf")),
    (
        "manual-wg-quick",
        include_str!("../conf/manual-wg-quick.conf"),
    ),
    ("mullvad", include_str!("../conf/mullvad.conf")),
    ("opnsense", include_str!("../conf/opnsense.conf")),
    ("pfsense", include_str!("../conf/pfsense.conf")),
    ("proton", include_str!("../conf/proton.conf")),
    ("tunsafe", include_str!("../conf/tunsafe.conf")),
    ("windows", include_str!("../conf/windows.conf")),
];

#[test]
fn files_of_the_wild_are_understood() {
    for (name, text) in FILES {
        let config = Config::parse(text).unwrap();

        insta::assert_debug_snapshot!(*name, config);
    }
}

#[test]
fn debug_output_holds_no_secret() {
    for (name, text) in FILES {
        let secrets = text.lines().filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            let key = key.replace(' ', "").to_lowercase();
            let is_secret = key == "privatekey" || key == "presharedkey";
            is_secret.then(|| value.split('#').next().unwrap_or_default().trim())
        });
        let secrets: Vec<_> = secrets.collect();
        assert!(!secrets.is_empty(), "{name}");

        let shown = format!("{:?}", Config::parse(text).unwrap());

        for secret in secrets {
            assert!(!shown.contains(secret), "{name}");
        }
    }
}

#[test]
fn every_file_survives_being_written_and_read_again() {
    for (name, text) in FILES {
        let config = Config::parse(text).unwrap();

        let written = config.to_conf_with_secrets();
        let again = Config::parse(written.as_str()).unwrap();

        assert_eq!(*written, *again.to_conf_with_secrets(), "{name}");
        assert_eq!(again.private_key, config.private_key, "{name}");
        assert_eq!(again.addresses, config.addresses, "{name}");
        assert_eq!(again.peers.len(), config.peers.len(), "{name}");
    }
}

#[test]
fn commands_are_refused_unless_they_are_allowed() {
    let (_, text) = FILES
        .iter()
        .find(|file| file.0 == "manual-wg-quick")
        .unwrap();
    let config = Config::parse(text).unwrap();

    let error = config.check_hooks(HookPolicy::Refuse).unwrap_err();

    assert_eq!(
        error.to_string(),
        "`PostUp` on line 6 would run a command as root"
    );
    assert_eq!(error.hint(), "`--allow-hooks` runs it");
    assert_eq!(config.check_hooks(HookPolicy::Allow), Ok(()));
}

#[test]
fn commands_keep_their_order() {
    let (_, text) = FILES.iter().find(|file| file.0 == "everything").unwrap();
    let config = Config::parse(text).unwrap();

    let commands: Vec<_> = config
        .hooks(Phase::PreUp)
        .map(|hook| &hook.command)
        .collect();

    assert_eq!(commands, ["echo one", "echo three"]);
}

#[test]
fn last_of_several_values_counts_with_a_warning() {
    let (_, text) = FILES.iter().find(|file| file.0 == "everything").unwrap();
    let config = Config::parse(text).unwrap();

    assert_eq!(config.peers[1].persistent_keepalive.unwrap().get(), 20);
    assert!(config.warnings.iter().any(|warning| matches!(
        warning,
        Warning::Replaced {
            field: Field::PersistentKeepalive,
            ..
        }
    )));
}
