// Package nfs3 is the codec of NFS version 3 and its mount protocol: what go-xdr's
// compiler makes of nfs3.x.
//
// It knows nothing of files. What is malformed is an error of ReadFrom.
package nfs3

//go:generate rm -f nfs3_xdr.go
//go:generate go run github.com/buildbarn/go-xdr/cmd/xdr_compiler@v0.0.0-20261005144839-a2095890273e -I . nfs3.x nfs3_xdr.go
//go:generate gofmt -w nfs3_xdr.go
//go:generate sed -i 1G nfs3_xdr.go
