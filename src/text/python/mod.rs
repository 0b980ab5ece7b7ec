//! What chat templates use of Python and of jinja2, where the template engine differs or lacks it.

mod filters;
mod generator;
mod kept;
mod methods;
mod numbers;
mod printf;
mod repr;
mod strftime;
mod texts;
mod view;

pub(super) use filters::install;
pub(super) use repr::text;
pub(super) use strftime::strftime;
