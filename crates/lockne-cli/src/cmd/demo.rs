//! `lockne demo`: the main job, on a small internet, judged on the wire.

mod stage;
mod story;
mod teller;

use std::{process::ExitCode, time::Instant};

use self::{stage::Stage, teller::Teller};
use crate::{
    cli::Json,
    failure::{Failure, Result},
};

pub(crate) fn demo(args: Json) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        return Err(
            Failure::new("the demo makes network namespaces, and only root can")
                .hint("run it with sudo; nothing outside of its namespaces is touched"),
        );
    }
    let started = Instant::now();
    let mut teller = Teller::new(args);
    let stage = Stage::build()?;
    let told = story::tell(&stage, &mut teller);
    let struck = stage.strike();
    told?;
    struck?;
    teller.finish(started.elapsed())
}
