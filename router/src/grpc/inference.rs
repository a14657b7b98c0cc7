//! `gaterail.v1.Inference`.

use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{self, BoxStream, StreamExt};
use gaterail_model::sampler::SamplingParams;
use gaterail_proto::grpc::v1::finished::StoppedBy;
use gaterail_proto::grpc::v1::generate_response::Event as Body;
use gaterail_proto::grpc::v1::inference_server::Inference;
use gaterail_proto::grpc::v1::tokenize_request::Input;
use gaterail_proto::grpc::v1::{
    FinishReason as Reason, Finished, GenerateRequest, GenerateResponse, ModelInfoRequest, ModelInfoResponse,
    Started, Token, TokenizeRequest, TokenizeResponse, TopToken,
};
use tonic::{Request, Response, Status};

use super::status::{status, timeout};
use super::{entry, read};
use crate::api::{Event, FinishReason, Piece, StopCause};
use crate::http::VERSION;
use crate::openai::ApiError;
use crate::serving::admit::{check_room, failed};
use crate::serving::{Answers, Scope, Server, Work, events};

pub struct Front {
    pub server: Arc<Server>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Inference for Front {
    type GenerateStream = BoxStream<'static, Result<GenerateResponse, Status>>;

    async fn generate(&self, request: Request<GenerateRequest>) -> Answer<Self::GenerateStream> {
        let deadline = timeout(request.metadata()).map(|time| Instant::now() + time);
        let mut scope = entry::scope(request.extensions())?;
        match self.accept(request.into_inner(), deadline, &mut scope).await {
            Ok(run) => Ok(Response::new(run(scope))),
            Err(error) => {
                scope.fail(&error);
                Err(status(&error))
            }
        }
    }

    async fn tokenize(&self, request: Request<TokenizeRequest>) -> Answer<TokenizeResponse> {
        let ids = self.tokens(request.into_inner()).await.map_err(|error| status(&error))?;
        Ok(Response::new(TokenizeResponse { ids, context: self.server.served.context() as u32 }))
    }

    async fn model_info(&self, _: Request<ModelInfoRequest>) -> Answer<ModelInfoResponse> {
        let served = &self.server.served;
        let card = served.engine.model();
        Ok(Response::new(ModelInfoResponse {
            names: served.names.clone(),
            context: card.context as u32,
            vocabulary: card.vocab as u32,
            parameters: served.about.parameters,
            active_parameters: served.about.active_parameters,
            kv_tokens: card.kv_positions as u64,
            version: VERSION.to_string(),
        }))
    }
}

type Run = Box<dyn FnOnce(Scope) -> BoxStream<'static, Result<GenerateResponse, Status>> + Send>;

impl Front {
    async fn accept(
        &self,
        mut request: GenerateRequest,
        deadline: Option<Instant>,
        scope: &mut Scope,
    ) -> Result<Run, ApiError> {
        let served = &self.server.served;
        let prompt = request.prompt.take();
        let generation = read::generation(request, &self.server.options.requests)?;
        served.check_name(generation.model.as_deref())?;
        check_room(&self.server, &scope.caller)?;
        let prompt = read::prompt(served, prompt, &self.server.options.requests).await?;
        let work = Work { prompts: vec![prompt], generation, prompt_logprobs: None, deadline };
        let admission = work.admit(&self.server, scope)?;
        let answers = events(admission.tickets, admission.choices);
        let (params, prompt_tokens) = (admission.params, admission.prompt_tokens);
        Ok(Box::new(move |scope| responses(answers, params, prompt_tokens, scope)))
    }

    async fn tokens(&self, request: TokenizeRequest) -> Result<Vec<u32>, ApiError> {
        let served = &self.server.served;
        served.check_name(Some(request.model.as_str()).filter(|name| !name.is_empty()))?;
        match request.input {
            None => Err(ApiError::invalid("input", "input is missing; set text or chat")),
            Some(Input::Text(text)) => served.encode("text", text, !request.no_special_tokens).await,
            Some(Input::Chat(chat)) => {
                served.encode_chat(read::conversation(chat, &self.server.options.requests)?).await
            }
        }
    }
}

/// The engine's events as messages. Dropping the stream, which is what tonic does when the client goes, cancels.
fn responses(
    answers: Answers,
    params: SamplingParams,
    prompt_tokens: usize,
    scope: Scope,
) -> BoxStream<'static, Result<GenerateResponse, Status>> {
    let state = Some((answers, scope));
    stream::unfold((state, params), move |(state, params)| async move {
        let (mut answers, mut scope) = state?;
        loop {
            let (choice, event) = answers.next().await?;
            scope.on(choice, &event);
            let body = match event {
                Event::Failed(failure) => {
                    let error = failed(&failure);
                    scope.fail(&error);
                    return Some((Err(status(&error)), (None, params)));
                }
                Event::Prompt { .. } => continue,
                Event::Started { cached_tokens } => Body::Started(Started {
                    prompt_tokens: prompt_tokens as u32,
                    cached_tokens: cached_tokens as u32,
                }),
                Event::Token(piece) => Body::Token(token(piece)),
                Event::Finished { choice, reason, usage, .. } => {
                    Body::Finished(finished(choice, reason, usage.generated_tokens, &params))
                }
            };
            return Some((Ok(GenerateResponse { event: Some(body) }), (Some((answers, scope)), params)));
        }
    })
    .boxed()
}

fn token(piece: Piece) -> Token {
    let top = piece.top.into_iter().map(|(id, logprob)| TopToken { id, logprob }).collect();
    Token { index: piece.choice, id: piece.token, text: piece.text, logprob: piece.logprob, top }
}

fn finished(index: u32, reason: FinishReason, tokens: usize, params: &SamplingParams) -> Finished {
    let (reason, stopped_by) = match reason {
        FinishReason::Length => (Reason::Length, None),
        FinishReason::Stop(StopCause::Token(id)) => (Reason::Stop, Some(StoppedBy::StopTokenId(id))),
        FinishReason::Stop(StopCause::String(which)) => {
            (Reason::Stop, params.stop.get(which).cloned().map(StoppedBy::Stop))
        }
    };
    Finished { index, reason: reason.into(), stopped_by, completion_tokens: tokens as u32 }
}
