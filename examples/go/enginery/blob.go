package enginery

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	pb "enginery.example/go/gen/enginery/v1"
)

// chunkSize is how much travels in one message.
const chunkSize = 512 << 10

// PushFloats binds a name to a numpy array of one dimension, uploaded in chunks: so it may be large.
func (engine *Engine) PushFloats(ctx context.Context, key string, littleEndian []byte) error {
	blob := &pb.Blob{
		BlobId:    newUUID(),
		Codec:     pb.Codec_CODEC_NDARRAY,
		Size:      uint64(len(littleEndian)),
		PartSizes: []uint64{uint64(len(littleEndian))},
		Dtype:     "<f8",
		Shape:     []int64{int64(len(littleEndian) / 8)},
	}
	if err := engine.upload(ctx, blob, littleEndian); err != nil {
		return err
	}
	values := map[string]*pb.Value{key: {Kind: &pb.Value_Blob{Blob: blob}}}
	request := &pb.PushSerializedRequest{Values: values}
	response, err := call(ctx, engine.id, func(ctx context.Context) (*pb.PushSerializedResponse, error) {
		return engine.service.PushSerialized(ctx, request)
	})
	if err != nil {
		return err
	}
	return remote(response.GetError())
}

func (engine *Engine) upload(ctx context.Context, blob *pb.Blob, data []byte) error {
	stream, err := engine.service.Upload(to(ctx, engine.id))
	if err != nil {
		return delivery(err)
	}
	err = stream.Send(&pb.UploadRequest{Kind: &pb.UploadRequest_Blob{Blob: blob}})
	for offset := 0; err == nil && offset < len(data); offset += chunkSize {
		piece := data[offset:min(offset+chunkSize, len(data))]
		chunk := &pb.Chunk{Offset: uint64(offset), Crc32: proto.Uint32(crc32.ChecksumIEEE(piece)), Data: piece}
		err = stream.Send(&pb.UploadRequest{Kind: &pb.UploadRequest_Chunk{Chunk: chunk}})
	}
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: the server has ended the stream, and says why below
		return delivery(err)
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		return delivery(err)
	}
	return nil
}

// PullBytes returns the bytes of a value in the codec's form, downloaded in chunks, and how the engine described them.
func (engine *Engine) PullBytes(ctx context.Context, key string, codec pb.Codec) (*pb.Blob, []byte, error) {
	request := &pb.PullSerializedRequest{Keys: []string{key}, Accept: []pb.Codec{codec}}
	ctx = metadata.AppendToOutgoingContext(ctx, "enginery-inline-limit", "1") // whatever its size, as a blob
	response, err := call(ctx, engine.id, func(ctx context.Context) (*pb.PullSerializedResponse, error) {
		return engine.service.PullSerialized(ctx, request)
	})
	if err != nil {
		return nil, nil, err
	}
	if err := remote(response.GetError()); err != nil {
		return nil, nil, err
	}
	blob := response.GetValues()[key].GetBlob()
	if blob == nil {
		return nil, nil, fmt.Errorf("the engine answered with no blob for %s", key)
	}
	data, err := engine.download(ctx, blob)
	return blob, data, err
}

func (engine *Engine) download(ctx context.Context, blob *pb.Blob) ([]byte, error) {
	stream, err := engine.service.Download(to(ctx, engine.id), &pb.DownloadRequest{BlobId: blob.GetBlobId()})
	if err != nil {
		return nil, delivery(err)
	}
	data := make([]byte, 0, blob.GetSize())
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, delivery(err)
		}
		chunk := message.GetChunk()
		if chunk == nil {
			continue // the first message describes the blob
		}
		if chunk.GetOffset() != uint64(len(data)) {
			return nil, fmt.Errorf("a chunk at %d came where %d was next", chunk.GetOffset(), len(data))
		}
		if chunk.Crc32 != nil && crc32.ChecksumIEEE(chunk.GetData()) != chunk.GetCrc32() {
			return nil, fmt.Errorf("the chunk at %d is damaged", chunk.GetOffset())
		}
		data = append(data, chunk.GetData()...)
	}
	if uint64(len(data)) != blob.GetSize() {
		return nil, fmt.Errorf("%d of %d bytes came", len(data), blob.GetSize())
	}
	return data, nil
}
