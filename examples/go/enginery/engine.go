package enginery

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	pb "enginery.example/go/gen/enginery/v1"
)

// retryFor bounds how long a call is sent again while the controller or the engine is away.
const retryFor = 30 * time.Second

// Engine is one engine: a namespace in a Python process.
type Engine struct {
	service pb.EngineServiceClient
	id      int32
}

// Execute runs Python code and returns its record. What the code raised comes as a *RemoteError.
func (engine *Engine) Execute(ctx context.Context, code string) (*pb.ExecuteResult, error) {
	request := &pb.ExecuteRequest{Code: code, Accept: []pb.Codec{pb.Codec_CODEC_JSON}}
	response, err := call(ctx, engine.id, func(ctx context.Context) (*pb.ExecuteResponse, error) {
		return engine.service.Execute(ctx, request)
	})
	if err != nil {
		return nil, err
	}
	return response.GetResult(), remote(response.GetResult().GetError())
}

// Push binds names of the engine's namespace to JSON values.
func (engine *Engine) Push(ctx context.Context, namespace map[string]any) error {
	values, err := structpb.NewStruct(namespace)
	if err != nil {
		return err
	}
	request := &pb.PushRequest{Namespace: &pb.PushRequest_Json{Json: values}}
	response, err := call(ctx, engine.id, func(ctx context.Context) (*pb.PushResponse, error) {
		return engine.service.Push(ctx, request)
	})
	if err != nil {
		return err
	}
	return remote(response.GetError())
}

// Pull returns values of the engine's namespace as JSON.
func (engine *Engine) Pull(ctx context.Context, keys ...string) (map[string]any, error) {
	request := &pb.PullRequest{Keys: keys, Accept: []pb.Codec{pb.Codec_CODEC_JSON}}
	response, err := call(ctx, engine.id, func(ctx context.Context) (*pb.PullResponse, error) {
		return engine.service.Pull(ctx, request)
	})
	if err != nil {
		return nil, err
	}
	if err := remote(response.GetError()); err != nil {
		return nil, err
	}
	return response.GetJson().AsMap(), nil
}

// call sends a call to an engine, again under the same operation id if it is not known to have arrived: the engine
// runs it once, and answers with what it did.
func call[Response any](ctx context.Context, id int32, send func(context.Context) (Response, error)) (Response, error) {
	ctx = metadata.AppendToOutgoingContext(to(ctx, id), "enginery-operation-id", newUUID())
	until := time.Now().Add(retryFor)
	for {
		response, err := send(ctx)
		if err == nil {
			return response, nil
		}
		problem := delivery(err)
		wait := problem.RetryAfter
		if wait == 0 {
			wait = 200 * time.Millisecond
		}
		if !problem.MayRetry() || time.Now().Add(wait).After(until) {
			return response, problem
		}
		select {
		case <-ctx.Done():
			return response, problem
		case <-time.After(wait):
		}
	}
}

// to names the engine that is meant.
func to(ctx context.Context, id int32) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "enginery-engine-id", strconv.Itoa(int(id)))
}

// newUUID returns a random UUID.
func newUUID() string {
	var data [16]byte
	_, _ = rand.Read(data[:]) // it never fails: it ends the process instead
	data[6] = data[6]&0x0f | 0x40
	data[8] = data[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", data[:4], data[4:6], data[6:8], data[8:10], data[10:])
}

// MayRetry says whether the same call may be sent again under the same id.
func (e *DeliveryError) MayRetry() bool {
	return e.Code == codes.Unavailable || e.RetryAfter > 0 || (e.Code == codes.Canceled && e.Reason == "")
}
