//! What each answer tells of the server beside what was asked: the time that its clock shows. No request is made for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::interceptors::{BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint;
use aws_smithy_types::config_bag::{Storable, StoreReplace};

use crate::noticed::{Noticed, TlsServer, ahead};

/// `Date` tells whole seconds.
const GRAIN: Duration = Duration::from_secs(1);
/// An answer that took longer says little of a clock.
const LONG: Duration = Duration::from_secs(10);

/// What was noticed so far; a clone notes it in the same place.
#[derive(Debug, Clone, Default)]
pub(super) struct Noticing(Arc<Mutex<Noticed>>);

/// When a request went out.
#[derive(Debug)]
struct Asked(SystemTime);

impl Storable for Asked {
    type Storer = StoreReplace<Self>;
}

impl Noticing {
    pub(super) fn noticed(&self) -> Noticed {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, note: impl FnOnce(&mut Noticed)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[dyn_dispatch_hint]
impl Intercept for Noticing {
    fn name(&self) -> &'static str {
        "Noticing"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        bag.interceptor_state().store_put(Asked(SystemTime::now()));
        let server = TlsServer::of_uri(context.request().uri());
        self.note(|noticed| noticed.tls = Some(server));
        Ok(())
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let answered = SystemTime::now();
        let told = context.response().headers().get("date").and_then(|date| DateTime::from_str(date, DateTimeFormat::HttpDate).ok());
        let told = told.and_then(|told| SystemTime::try_from(told).ok());
        if let (Some(told), Some(Asked(asked))) = (told, bag.load::<Asked>())
            && answered.duration_since(*asked).is_ok_and(|took| took < LONG)
        {
            let ahead = ahead(*asked, answered, told, GRAIN);
            self.note(|noticed| noticed.ahead = Some(ahead));
        }
        Ok(())
    }
}
