// Command go shows Enginery from Go: go run . STATE_DIRECTORY
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"enginery.example/go/enginery"
	pb "enginery.example/go/gen/enginery/v1"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run . STATE_DIRECTORY   (`enginery status` prints it; or a folder with a copied client.json)")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stateDir string) error {
	client, err := enginery.Connect(stateDir)
	if err != nil {
		return err
	}
	defer client.Close()

	engines, err := client.Engines(ctx)
	if err != nil {
		return err
	}
	for _, engine := range engines {
		fmt.Printf("engine %d: %s\n", engine.GetEngineId(), engine.GetState())
	}
	if len(engines) == 0 {
		return errors.New("no engine is registered: start one with `enginery engine`")
	}
	engine := client.Engine(engines[0].GetEngineId())

	result, err := engine.Execute(ctx, "print('hello from Python')\n6 * 7")
	if err != nil {
		return err
	}
	fmt.Printf("printed %q, value %v\n", result.GetStdout(), result.GetValue().GetJson().AsInterface())

	if err := engine.Push(ctx, map[string]any{"a": []any{1, 2, 3}, "name": "Gopher"}); err != nil {
		return err
	}
	if _, err := engine.Execute(ctx, "total = sum(a); greeting = f'hello {name}'"); err != nil {
		return err
	}
	pulled, err := engine.Pull(ctx, "total", "greeting")
	if err != nil {
		return err
	}
	fmt.Printf("pulled total = %v, greeting = %v\n", pulled["total"], pulled["greeting"])

	if err := showErrors(ctx, client, engine); err != nil {
		return err
	}
	return upAndDown(ctx, engine)
}

// showErrors meets both planes of error: what code raised, and what went wrong with delivery.
func showErrors(ctx context.Context, client *enginery.Client, engine *enginery.Engine) error {
	var raised *enginery.RemoteError
	if _, err := engine.Execute(ctx, "{}['missing']"); !errors.As(err, &raised) {
		return fmt.Errorf("expected a KeyError, not %v", err)
	}
	last := raised.GetErrors()[0]
	fmt.Printf("raised %s(%s) in line %d\n", last.GetTypeName(), last.GetMessage(), last.GetFrames()[0].GetLine())

	var refused *enginery.DeliveryError
	if _, err := client.Engine(999).Execute(ctx, "1"); !errors.As(err, &refused) {
		return fmt.Errorf("expected a delivery error, not %v", err)
	}
	fmt.Printf("refused with %s, engine %s\n", refused.Reason, refused.Metadata["engine_id"])
	return nil
}

// upAndDown sends an array of a million numbers, has numpy square it, and fetches it again.
func upAndDown(ctx context.Context, engine *enginery.Engine) error {
	const count = 1_000_000
	numbers := make([]float64, count)
	for i := range numbers {
		numbers[i] = float64(i)
	}
	var data bytes.Buffer
	if err := binary.Write(&data, binary.LittleEndian, numbers); err != nil {
		return err
	}
	if err := engine.PushFloats(ctx, "numbers", data.Bytes()); err != nil {
		return err
	}
	if _, err := engine.Execute(ctx, "squares = numbers ** 2"); err != nil {
		return err
	}
	blob, received, err := engine.PullBytes(ctx, "squares", pb.Codec_CODEC_NDARRAY)
	if err != nil {
		return err
	}
	squares := make([]float64, count)
	if err := binary.Read(bytes.NewReader(received), binary.LittleEndian, squares); err != nil {
		return err
	}
	for i, square := range squares {
		if square != numbers[i]*numbers[i] {
			return fmt.Errorf("number %d is %v", i, square)
		}
	}
	fmt.Printf("squared %d numbers of type %s\n", count, blob.GetDtype())
	return nil
}
