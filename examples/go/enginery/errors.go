package enginery

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "enginery.example/go/gen/enginery/v1"
)

// RemoteError is what user code raised on the engine. It comes in a response: the call itself went well.
type RemoteError struct{ *pb.RemoteError }

// Error returns the last exception, as Python would print it in one line.
func (e *RemoteError) Error() string {
	if len(e.GetErrors()) == 0 {
		return "an unknown exception"
	}
	raised := e.GetErrors()[0]
	return fmt.Sprintf("%s: %s", raised.GetTypeName(), raised.GetMessage())
}

// DeliveryError says that a call was not delivered, or not accepted. Reason is one of the table in docs/contract.md,
// Metadata has every part of the text that varies.
type DeliveryError struct {
	Code       codes.Code
	Reason     string
	Message    string
	Metadata   map[string]string
	RetryAfter time.Duration // what the server asks for, 0 if it asks for nothing
}

func (e *DeliveryError) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("%s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("%s (%s)", e.Message, e.Reason)
}

// remote returns a RemoteError if there is one.
func remote(e *pb.RemoteError) error {
	if e == nil {
		return nil
	}
	return &RemoteError{e}
}

// delivery reads the google.rpc.Status of a failed call.
func delivery(err error) *DeliveryError {
	read := status.Convert(err)
	found := &DeliveryError{Code: read.Code(), Message: read.Message()}
	for _, detail := range read.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == "enginery" {
				found.Reason, found.Metadata = detail.GetReason(), detail.GetMetadata()
			}
		case *errdetails.RetryInfo:
			found.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	return found
}
