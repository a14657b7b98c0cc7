//! The models that routers serve with this worker's help. What several of them share is here once, if it comes from a checkpoint
//! that was looked at here: a digest is a claim, and what one router sends is not for another.

use std::sync::{Arc, Mutex, Weak};

use gaterail_model::walk::ExpertMath;
use gaterail_model::weights::Precision;
use gaterail_proto::RouterId;

use crate::options::WorkerOptions;
use crate::served::ServedModel;
use crate::shards::Shards;
use crate::source::Source;

/// A model, what is held of it, and where more of it comes from.
pub struct Model {
    pub served: ServedModel,
    /// Who named it first.
    router: RouterId,
    pub shards: Arc<Shards>,
    pub source: Source,
}

/// All models that somebody uses.
#[derive(Default)]
pub struct Models(Mutex<Vec<Weak<Model>>>);

impl Models {
    /// The model of a router; the one of another router, if it is read here, has the same weights, and computes with them in the
    /// same way. May read a checkpoint.
    pub fn of(&self, router: RouterId, served: ServedModel, options: &WorkerOptions) -> Arc<Model> {
        fn key(served: &ServedModel) -> (&str, Precision, &ExpertMath) {
            (&served.digest, served.precision, &served.math)
        }
        let mut models = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        models.retain(|model| model.strong_count() > 0);
        let same = |model: &Arc<Model>| key(&model.served) == key(&served);
        let same: Vec<Arc<Model>> = models.iter().filter_map(Weak::upgrade).filter(same).collect();
        let own = same.iter().find(|model| model.router == router);
        let read_here = || same.iter().find(|model| model.source.reads_checkpoint(&model.served, options));
        if let Some(model) = own.or_else(read_here) {
            return model.clone();
        }
        let shards = Arc::new(Shards::on(options.gpu.as_ref(), served.math.layers.len()));
        let model = Arc::new(Model { served, router, shards, source: Source::default() });
        models.push(Arc::downgrade(&model));
        model
    }
}

#[cfg(test)]
mod tests {
    use gaterail_cluster::exchange::Waiting;
    use gaterail_kernels::{CpuOptions, Device};

    use super::*;
    use crate::options::WorkerLimits;

    #[test]
    fn what_is_not_read_here_is_not_shared() {
        let options = WorkerOptions {
            join: Vec::new(),
            token: None,
            tls: None,
            name: String::new(),
            device: Arc::new(|| Device::cpu(CpuOptions::default())),
            gpu: None,
            memory_bytes: 0,
            packed_cache: None,
            models: Vec::new(),
            read_checkpoints: false,
            shared_memory: false,
            waiting: Waiting::default(),
            limits: WorkerLimits::default(),
            note: Arc::new(|_| {}),
        };
        let models = Models::default();
        let of = |router| {
            models.of(RouterId(router), ServedModel::new(crate::served::tests::message()).unwrap(), &options)
        };
        let (one, other) = (of(1), of(2));
        assert!(!Arc::ptr_eq(&one, &other), "both say that it is the same");
        assert!(Arc::ptr_eq(&one, &of(1)), "a router that comes again");
    }
}
