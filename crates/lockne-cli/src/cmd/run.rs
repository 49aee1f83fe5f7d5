//! `lockne run`: asks for a policy, then becomes the program.

use std::{
    env,
    ffi::OsStr,
    io,
    net::IpAddr,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use hyper::Method;
use ipnet::IpNet;
use lockne_core::{
    api,
    policy::{Action, Terms},
    tunnel::TunnelName,
};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::{
    cli::{ActionArgs, Place, Run},
    client::Client,
    cmd::tunnel,
    failure::{self, Failure},
    hidden, output, resolv_conf, sigpipe,
};

/// Runs the program. Returns only if that failed.
pub(crate) fn run(place: &Place, args: &Run) -> Failure {
    match prepare(place, args) {
        Ok((path, running)) => become_program(&path, args, &running),
        Err(failure) => failure,
    }
}

/// Does all that can fail before the program, and returns its path and what it got.
fn prepare(place: &Place, args: &Run) -> failure::Result<(PathBuf, api::Running)> {
    let ours = |failure: Failure| failure.code(failure::RUN_FAILED);
    let path = find(&args.program[0])?;
    let client = Client::new(place).map_err(ours)?;
    let (terms, tunnel) =
        terms(&args.action, &args.lan, &args.dns, args.allow_hooks).map_err(ours)?;
    let request = api::Run { tunnel, terms };
    let running: api::Running = client
        .ask_or_start("waiting for the daemon", Method::POST, "/v1/run", &request)
        .map_err(|failure| ours(point_to_file(failure, &request.terms.action)))?;
    for notice in &running.notices {
        output::notice(notice);
    }
    if running.resolvers.is_empty()
        && let Action::Via(tunnel) = &request.terms.action
        && let Some(here) = resolv_conf::resolver_here()
    {
        output::notice(&format!(
            "tunnel `{tunnel}` names no resolver, and the one of this machine ({here}) is refused, \
             since it asks on outside of the tunnel; `--dns ADDRESS` names one"
        ));
    }
    if let Err(open) = hidden::hide(&running.open_sockets) {
        output::notice(&open.to_string());
    }
    Ok((path, running))
}

/// What the arguments say, with the tunnel to bring up for it.
pub(crate) fn terms(
    action: &ActionArgs,
    lan: &[IpNet],
    dns: &[IpAddr],
    allow_hooks: bool,
) -> failure::Result<(Terms, Option<api::TunnelUp>)> {
    let mut file = None;
    let mut names: Vec<TunnelName> = Vec::new();
    let mut or_direct = false;
    for (at, via) in action.via.iter().enumerate() {
        if via == "direct" && at > 0 {
            if at + 1 < action.via.len() {
                return Err(
                    Failure::new("`direct` can only be the last of several in `--via`")
                        .hint("what comes behind it would never be used"),
                );
            }
            or_direct = true;
            continue;
        }
        let name = if via.contains('/') || Path::new(via).extension() == Some(OsStr::new("conf")) {
            if file.is_some() {
                return Err(Failure::new("only one wg-quick file can be given")
                    .hint("bring the others up with `lockne tunnel up FILE.conf`, and name them"));
            }
            let request = tunnel::request(
                Path::new(via),
                None,
                allow_hooks,
                api::Lifetime::UntilLastJob,
            )?;
            file.insert(request).name.clone()
        } else {
            via.parse()
                .map_err(|error| Failure::new("this cannot be a tunnel").because(&error))?
        };
        if names.contains(&name) {
            return Err(Failure::new(format!("`--via` names `{name}` twice")));
        }
        names.push(name);
    }
    let mut names = names.into_iter();
    let way = match names.next() {
        Some(first) => Action::Via(first),
        None if action.direct => Action::Direct,
        None => Action::Block,
    };
    let terms = Terms {
        action: way,
        or: names.collect(),
        or_direct,
        lan: lan.iter().copied().collect(),
        dns: dns.to_vec(),
    };
    Ok((terms, file))
}

/// Names the file that may have been meant by a tunnel which there is not.
pub(crate) fn point_to_file(failure: Failure, action: &Action) -> Failure {
    let Action::Via(name) = action else {
        return failure;
    };
    let places = ["./", "/etc/wireguard/"];
    let files = places.map(|place| format!("{place}{name}.conf"));
    match files.iter().find(|file| Path::new(file).is_file()) {
        Some(file) if failure.is_unknown_name() => {
            failure.hint(format!("for the wg-quick file, say `--via {file}`"))
        }
        _ => failure,
    }
}

/// Finds the program first, so that a mistyped name changes nothing.
///
/// A path stays as it was typed: a script sees it as its `$0`.
fn find(program: &OsStr) -> failure::Result<PathBuf> {
    let shown = program.display();
    let missing = || {
        let hint = "is it spelt right, and in a directory of PATH? Else give its full path";
        Failure::new(format!("there is no program `{shown}`"))
            .hint(hint)
            .code(failure::NOT_FOUND)
    };
    let cannot_execute =
        || Failure::new(format!("`{shown}` cannot be executed")).code(failure::CANNOT_EXECUTE);
    if !program.as_bytes().contains(&b'/') {
        return which::which(program).map_err(|_| {
            let path = env::var_os("PATH").unwrap_or_default();
            match env::split_paths(&path)
                .map(|it| it.join(program))
                .find(|it| it.is_file())
            {
                Some(file) if !program.is_empty() => {
                    cannot_execute().why(format!("`{}` is not executable", file.display()))
                }
                _ => missing(),
            }
        });
    }
    let path = Path::new(program);
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(cannot_execute().because(&error))
        }
        Err(_) => Err(missing()),
        Ok(file) if file.is_dir() => Err(cannot_execute().why("it is a directory")),
        Ok(_) => match accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) => Ok(path.to_owned()),
            Err(errno) => Err(cannot_execute()
                .because(&io::Error::from(errno))
                .hint(format!("`chmod +x {shown}` if it is a program"))),
        },
    }
}

fn become_program(path: &Path, args: &Run, running: &api::Running) -> Failure {
    let mut command = Command::new(path);
    command.arg0(&args.program[0]).args(&args.program[1..]);
    // resolv.conf(5): takes the place of the home's `search`. What the user has set stays.
    if !running.search.is_empty() && env::var_os("LOCALDOMAIN").is_none() {
        command.env("LOCALDOMAIN", running.search.join(" "));
    }
    sigpipe::keep(&mut command);
    let error = command.exec();
    let failure = Failure::new(format!("cannot execute `{}`", path.display()));
    if error.kind() == io::ErrorKind::NotFound {
        return failure
            .why("the interpreter or loader that it names is missing")
            .code(failure::NOT_FOUND);
    }
    failure.because(&error).code(failure::CANNOT_EXECUTE)
}
