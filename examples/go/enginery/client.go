// Package enginery is a small client of Enginery's contract: engines in Python, called from Go.
//
// It shows what a client in any language does: read the connection file, trust the cluster's own authority, send the
// token, name the engine and the operation in metadata, and tell the two planes of error apart.
package enginery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	pb "enginery.example/go/gen/enginery/v1"
)

// connectionFile is client.json. Whoever can read it can use the cluster.
type connectionFile struct {
	Format     int    `json:"format"`
	Address    string `json:"address"`
	ServerName string `json:"server_name"`
	CA         string `json:"ca_pem"`
	Token      string `json:"token"`
	Insecure   bool   `json:"insecure"`
}

// Client is a connection to one controller. It may be used by many goroutines.
type Client struct {
	connection *grpc.ClientConn
	cluster    pb.ClusterServiceClient
	engine     pb.EngineServiceClient
}

// Connect reads client.json in the controller's state directory. Nothing is sent before the first call.
func Connect(stateDir string) (*Client, error) {
	path := filepath.Join(stateDir, "client.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("is a controller running? %w", err)
	}
	var file connectionFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("%s is not a connection file: %w", path, err)
	}
	if file.Format != 1 {
		return nil, fmt.Errorf("%s has format %d, this client reads format 1", path, file.Format)
	}
	if file.Insecure {
		return nil, fmt.Errorf("%s is of a controller without TLS, which this client does not speak to", path)
	}
	authority := x509.NewCertPool()
	if !authority.AppendCertsFromPEM([]byte(file.CA)) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	// The cluster has an authority of its own, and its certificate bears one name whatever the address.
	encrypted := credentials.NewTLS(&tls.Config{RootCAs: authority, ServerName: file.ServerName, MinVersion: tls.VersionTLS12})
	connection, err := grpc.NewClient(
		"passthrough:///"+file.Address,
		grpc.WithTransportCredentials(encrypted),
		grpc.WithPerRPCCredentials(token(file.Token)),
		grpc.WithNoProxy(), // the controller is an address of this network, whatever the environment says of the web
	)
	if err != nil {
		return nil, err
	}
	return &Client{connection, pb.NewClusterServiceClient(connection), pb.NewEngineServiceClient(connection)}, nil
}

// Close ends the connection. Operations that run go on, and their results stay for whoever asks for them.
func (client *Client) Close() error { return client.connection.Close() }

// Engines returns all engines that are registered.
func (client *Client) Engines(ctx context.Context) ([]*pb.Engine, error) {
	var engines []*pb.Engine
	request := &pb.ListEnginesRequest{}
	for {
		page, err := client.cluster.ListEngines(ctx, request)
		if err != nil {
			return nil, delivery(err)
		}
		engines = append(engines, page.GetEngines()...)
		if page.GetNextPageToken() == "" {
			return engines, nil
		}
		request.PageToken = page.GetNextPageToken()
	}
}

// Engine returns the engine of an id; that it exists shows with the first call.
func (client *Client) Engine(id int32) *Engine { return &Engine{client.engine, id} }

// token is sent with every call, over TLS alone.
type token string

func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(t)}, nil
}

func (t token) RequireTransportSecurity() bool { return true }
