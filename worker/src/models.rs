//! The models that routers serve with this worker's help: what several of them share is here once.

use std::sync::{Arc, Mutex, Weak};

use gaterail_model::walk::ExpertMath;
use gaterail_model::weights::Precision;

use crate::served::ServedModel;
use crate::shards::Shards;
use crate::source::Source;

/// A model, what is held of it, and where more of it comes from.
pub struct Model {
    pub served: ServedModel,
    pub shards: Arc<Shards>,
    pub source: Source,
}

/// All models that somebody uses.
#[derive(Default)]
pub struct Models(Mutex<Vec<Weak<Model>>>);

impl Models {
    /// The model of a router; the one of another router, if it has the same weights and computes with them in the same way.
    pub fn of(&self, served: ServedModel) -> Arc<Model> {
        fn key(served: &ServedModel) -> (&str, Precision, &ExpertMath) {
            (&served.digest, served.precision, &served.math)
        }
        let mut models = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        models.retain(|model| model.strong_count() > 0);
        let same = |model: &Arc<Model>| key(&model.served) == key(&served);
        if let Some(model) = models.iter().filter_map(Weak::upgrade).find(same) {
            return model;
        }
        let shards = Arc::new(Shards::new(served.math.layers.len()));
        let model = Arc::new(Model { served, shards, source: Source::default() });
        models.push(Arc::downgrade(&model));
        model
    }
}
